#!/usr/bin/env python3
"""What a training step of unimol2-nano costs, for several shapes: how nano.yaml's was chosen.

    OMP_NUM_THREADS=1 python recipes/nano/step_cost.py --library ~/unimol2-nano/COMMIT/library

The recipe's own steps (targets, precision, micro-batches; eager) on one core, in turn; processor time, so that
neighbours count little. Writes step_cost.json and .md beside this file.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from background import processor_name

from unimol2_hf import UniMol2ForPreTraining, keep_freed_memory
from unimol2_hf.pretraining.losses import losses_of
from unimol2_hf.pretraining.pretrain import make_data, make_model, target_scale_of
from unimol2_hf.pretraining.settings import PretrainSettings
from unimol2_hf.pretraining.stream import Share

HERE = Path(__file__).parent
# Layers, width, pair width, inner pair width.
SHAPES = ((6, 192, 64, 16), (4, 352, 64, 16), (4, 384, 64, 16), (4, 384, 48, 16), (6, 304, 64, 16), (8, 256, 64, 16))
STEPS, ROUNDS = 2, 3


def settings_of(shape: tuple[int, ...], precision: str, library: Path) -> PretrainSettings:
    recipe: dict[str, Any] = yaml.safe_load((HERE / "nano.yaml").read_text())
    layers, width, pair_width, inner = shape
    recipe["model"] |= {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 16,
        "pair_hidden_size": pair_width,
        "pair_inner_size": inner,
    }
    changes = {"data": str(library), "output_dir": "unused", "precision": precision, "validation_molecules": 1}
    return PretrainSettings(**{**recipe, **changes})


def seconds_of_step(model: UniMol2ForPreTraining, steps: list[dict[str, Any]], precision: str) -> float:
    """Processor seconds of a step's forward and backward passes."""
    began = time.process_time()
    for step in steps:
        for batch in step["micro_batches"]:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                loss = torch.stack(losses_of(model(**batch))).sum()
            loss.backward()
        model.zero_grad()
    return (time.process_time() - began) / len(steps)


def main(library: Annotated[Path, typer.Option(help="of library.py")]) -> None:
    """Measure every shape, in float32 and in bfloat16."""
    torch.set_num_threads(1)
    keep_freed_memory()
    cases = [(shape, precision) for shape in SHAPES for precision in ("bfloat16", "float32")]
    models = []
    for shape, precision in cases:
        model = make_model(settings_of(shape, precision, library)).train()
        model.set_attn_implementation("eager")
        models.append(model)
    stream = make_data(settings_of(*cases[0], library), Share(), target_scale_of(models[0]))[2]
    steps = [stream.step(number) for number in range(STEPS)]
    samples = steps[0]["samples"]
    seconds: list[list[float]] = [[] for _ in cases]
    for turn in range(ROUNDS + 1):
        for place, ((_, precision), model) in enumerate(zip(cases, models, strict=True)):
            taken = seconds_of_step(model, steps, precision)
            if turn:  # the first one warms up
                seconds[place].append(taken)
    rows: list[dict[str, Any]] = [
        {
            "shape": shape,
            "precision": precision,
            "parameters": model.num_parameters(),
            "samples_per_second": samples / statistics.median(each),
        }
        for (shape, precision), model, each in zip(cases, models, seconds, strict=True)
    ]
    (HERE / "step_cost.json").write_text(json.dumps({"processor": processor_name(), "cases": rows}, indent=1) + "\n")
    lines = [f"One core of {processor_name()}; forward and backward, eager.", ""]
    lines += [
        "| layers, width, pair width, inner | parameters, millions | precision | samples a second |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = (", ".join(map(str, row["shape"])), f"{row['parameters'] / 1e6:.2f}", row["precision"])
        lines.append(f"| {' | '.join(cells)} | {row['samples_per_second']:.1f} |")
    (HERE / "step_cost.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
