#!/usr/bin/env python3
"""Arms: short continuations of the first edition of nano, 40,000 samples each, to choose the second edition's recipe.

    OMP_NUM_THREADS=1 python recipes/nano/arms.py run NAME --library DIR --data DIR --home runs/arms
    python recipes/nano/arms.py table

One core each, two at a time. `run` trains and adds frozen errors (kernel ridge, three seeds) to arms.json; `table`
writes arms.md.
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from background import processor_name
from frozen_probe import TASKS, probe
from library import TEACHER
from rich.console import Console

from unimol2_hf import NANO, UniMol2Model, keep_freed_memory
from unimol2_hf.jobs.build_conformers import RDKIT_DESCRIPTORS
from unimol2_hf.pretraining.pretrain import pretrain
from unimol2_hf.pretraining.settings import PretrainSettings

HERE = Path(__file__).parent
RESULTS = HERE / "arms.json"
SAMPLES, BATCH = 40_000, 64
FIRST_EDITION = "first edition"
# As the library was at 8207edd: the teacher in one block.
BASE: dict[str, Any] = {
    "start_from": NANO,
    "model": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pair_dropout_prob": 0.0},
    "noise": {"clean_probability": 0.5},
    "targets": {RDKIT_DESCRIPTORS: 2.0, TEACHER: 2.0},
    "precision": "bfloat16",
    "max_steps": SAMPLES // BATCH,
    "samples_per_step": BATCH,
    "max_rows": BATCH,
    "max_pairs": 8000,
    "learning_rate": 6e-4,
    "warmup_steps": 50,
    "trainer": {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": SAMPLES // BATCH // 2, "decay_type": "linear"},
    },
    "scaffold_temperature": None,
    "open_shards": 32,
    "validation_molecules": 1000,
    "logging_steps": 25,
    "eval_steps": SAMPLES // BATCH,
    "save_steps": 125,
}
# What each changes. At most eight were to be run.
ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "no_teacher": {"targets": {RDKIT_DESCRIPTORS: 4.0}},
    "clean_only": {"noise": {"clean_probability": 1.0}},
    "noised_only": {"noise": {"clean_probability": 0.0}},
}
app = typer.Typer(no_args_is_help=True)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help=f"{FIRST_EDITION!r} (no training) or one of {', '.join(ARMS)}")],
    library: Annotated[Path, typer.Option(help="of library.py")],
    data: Annotated[Path, typer.Option(help="folder with the public tables")],
    home: Annotated[Path, typer.Option(help="folder for runs and the probe's conformers")],
) -> None:
    """Train an arm, probe it, and add it to arms.json."""
    torch.set_num_threads(1)
    keep_freed_memory()
    folder, began, validation = Path(NANO), time.process_time(), {}
    if name != FIRST_EDITION:
        settings = {**BASE, **ARMS[name], "data": str(library), "output_dir": str(home / name)}
        history = pretrain(PretrainSettings(**settings), Console())
        validation = [entry for entry in history if "eval_loss" in entry][-1]
        folder = home / name / "model"
    seconds = time.process_time() - began
    errors = probe(UniMol2Model.from_pretrained(folder), data, home / "probe")
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known[name] = {
        "changes": ARMS.get(name, {}),
        "mae": errors,
        "processor_seconds": seconds,
        "validation": validation,
        "processor": processor_name(),
    }
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")


@app.command()
def table() -> None:
    """Write arms.md."""
    known = json.loads(RESULTS.read_text())
    lines = [
        f"Test MAE of frozen vectors, kernel ridge, mean of three seeds; {SAMPLES:,} samples from the first edition.",
        "`python recipes/nano/arms.py run NAME ...`; R2: median over targets, held out, in the arm's own view.",
        "",
        f"| arm | read-out | {' | '.join(TASKS)} | R2 descriptors | R2 teacher |",
        "|---|---|" + "---|" * (len(TASKS) + 2),
    ]
    for name, arm in known.items():
        r2 = [arm["validation"].get(f"eval_{block}_r2") for block in (RDKIT_DESCRIPTORS, TEACHER)]
        shown = ["" if value is None else f"{value:.2f}" for value in r2]
        for pooling, errors in arm["mae"].items():
            cells = [f"{errors[task]:.3f}" for task in TASKS]
            lines.append(f"| {name} | {pooling} | {' | '.join([*cells, *shown])} |")
    lines += ["", f"Processor: {', '.join(sorted({arm['processor'] for arm in known.values()}))}, one core an arm."]
    (HERE / "arms.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    app()
