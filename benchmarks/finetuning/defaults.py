#!/usr/bin/env python3
"""Which options suit unimol2-nano: read-outs, rates and epochs on three tables, judged on the validation part alone.

    python benchmarks/finetuning/defaults.py --data DIR [--work-dir runs/defaults]

Fine-tuned: one `unimol2-hf finetune --head finetuned` an arm. Frozen: the same head as `--head frozen` fits, on the
training part alone, since the command's own is fitted on the validation part too. Started again it goes on; writes
defaults.json and defaults.md.
"""

import json
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from finetune_command import HERE, finetune, on_split, packaged_model, processor, targets_of
from heads import key_of, metrics_of_head, settings_for, vectors_of
from rich.console import Console

from unimol2_hf.data.splits import TRAIN, VALID
from unimol2_hf.finetuning.prepare import prepare

FROZEN, TRAINED = "frozen", "fine-tuned"
CLS, MEAN, CLS_MEAN, LAYERS_MEAN = (f"--pooling {name}" for name in ("cls", "mean", "cls_mean", "layers_mean"))
HALF, TWICE = "--learning-rate 2e-4", "--learning-rate 8e-4"
# What is compared: head, table, option. Rates on ESOL first, where they cost least.
ARMS = [
    *product([FROZEN], ["esol", "bbbp", "biogen_adme"], [CLS, MEAN, CLS_MEAN, LAYERS_MEAN]),
    *product([TRAINED], ["esol", "bbbp"], [CLS, MEAN, CLS_MEAN]),
    *product([TRAINED], ["biogen_adme"], [CLS, CLS_MEAN]),
    *product([TRAINED], ["esol"], [f"{MEAN} {HALF}", f"{MEAN} {TWICE}"]),
    *product([TRAINED], ["esol", "bbbp", "biogen_adme"], [f"{CLS} {HALF}"]),
    (TRAINED, "biogen_adme", f"{CLS} --epochs 14"),
]
SEED = 1  # a split that no reported figure is of
Result = dict[str, Any]


def run_frozen(name: str, option: str, data: Path, work_dir: Path) -> Result:
    settings = settings_for(name, data, SEED, pooling=option.split()[1])
    prepared = prepare(data / f"{name}.csv", settings, Console())
    means = [each.mean(axis=0) if len(each) else None for each in vectors_of(prepared, settings)]
    width = next(len(each) for each in means if each is not None)
    features = np.stack([np.full(width, np.nan) if each is None else each for each in means])
    return {"valid": metrics_of_head(prepared, features, settings, fitted_on=(TRAIN,), judged=VALID)}


def run_trained(name: str, option: str, data: Path, work_dir: Path) -> Result:
    folder = work_dir / f"{name}{option.replace(' ', '_')}"
    arguments = ["--head", "finetuned", *on_split(name, data, SEED), *option.split()]
    run = finetune(data / f"{name}.csv", targets_of(name, data), folder, *arguments)
    history = json.loads((folder / "log_history.json").read_text())
    scores = [entry["eval_score"] for entry in history if "eval_score" in entry]
    epochs = {"best_epoch": 1 + scores.index(min(scores)), "epochs": len(scores)}
    return {"minutes": run.minutes, **epochs, "valid": run.report["valid"]}


def as_markdown(runs: list[Result]) -> str:
    lines = [
        f"`python benchmarks/finetuning/defaults.py --data DIR`, {processor()}, one seed, validation part (scaffold",
        f"split, seed {SEED}). MAE, of several targets their mean; bbbp: ROC-AUC. Frozen heads are fitted on the",
        "training part alone. The best epoch of all; minutes with other work beside.",
        "",
        "| head | table | option | error or ROC-AUC | best epoch | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        value = np.mean([metrics[key_of(run["table"])] for metrics in run["valid"].values()])
        told = [run["head"], run["table"], f"`{run['option']}`", f"{value:.4f}"]
        told += [f"{run['best_epoch']} of {run['epochs']}", f"{run['minutes']:.1f}"] if "epochs" in run else ["", ""]
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def main(
    data: Annotated[Path, typer.Option(help="folder with the CSV files and splits/")],
    work_dir: Annotated[Path, typer.Option()] = Path("runs/defaults"),
) -> None:
    """Run every arm that is missing, or was of another model."""
    results, model = HERE / "defaults.json", packaged_model()
    known: list[Result] = json.loads(results.read_text()) if results.exists() else []
    runs = [run for run in known if run.get("model") == model]
    for head, name, option in ARMS:
        about = {"model": model, "head": head, "table": name, "option": option}
        if any(about.items() <= run.items() for run in runs):
            continue
        run = run_frozen if head == FROZEN else run_trained
        runs.append({**about, **run(name, option, data, work_dir)})
        results.write_text(json.dumps(runs, indent=1) + "\n")
        results.with_suffix(".md").write_text(as_markdown(runs))


if __name__ == "__main__":
    typer.run(main)
