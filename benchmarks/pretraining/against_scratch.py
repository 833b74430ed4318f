#!/usr/bin/env python3
"""What pretraining is worth: unimol2-nano fine-tuned, beside the same architecture from random weights.

    python benchmarks/pretraining/against_scratch.py --data DIR

ESOL and two Biogen endpoints (one model for both), the fixed scaffold splits, three seeds of split, head and batches;
the same command for both but for `--model` or `--scale`. Finished runs are not run again. Two at once, one thread each.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "finetuning"))

import typer
from report import comparison_row
from splits import with_split

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
MODELS = {"pretrained": "unimol2-nano", "from scratch": "nano"}
START = {"pretrained": "--model unimol2-nano", "from scratch": "--scale nano"}
TARGETS = {"esol": ("logSolubility",), "biogen_adme": ("hlm_clint", "mdr1_er")}
OPTIONS = {
    "esol": "--epochs 15 --batch-size 16 --learning-rate 4e-4 --pooling mean",
    "biogen_adme": "--epochs 6 --batch-size 16 --learning-rate 4e-4 --pooling mean --precision bfloat16",
}


def run_one(name: str, weights: str, seed: int, work_dir: Path) -> dict[str, Any]:
    """One `unimol2-hf finetune`, unless it was run already; its test metrics by target."""
    folder = work_dir / f"{name}_{MODELS[weights]}_{seed}"
    command = f"unimol2-hf finetune {work_dir / name}.csv --targets {','.join(TARGETS[name])} {START[weights]}"
    command += f" --split-column seed{seed} --seed {seed} --num-workers 1 --output-dir {folder} {OPTIONS[name]}"
    if not (folder / "metrics.json").exists():
        executable = Path(sys.executable).with_name("unimol2-hf")
        with (work_dir / f"{folder.name}.log").open("w") as log:
            words = [str(executable), *shlex.split(command)[1:]]
            subprocess.run(words, stdout=log, stderr=log, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    metrics = json.loads((folder / "metrics.json").read_text())
    return {"dataset": name, "weights": weights, "seed": seed, "command": command, "test": metrics["test"]}


def main(
    data: Annotated[Path, typer.Option(help="folder with esol.csv, biogen_adme.csv and splits/")],
    datasets: Annotated[str, typer.Option(help="comma-separated")] = ",".join(TARGETS),
    work_dir: Annotated[Path, typer.Option()] = Path("runs/against_scratch"),
    at_once: Annotated[int, typer.Option(help="runs at the same time")] = 2,
) -> None:
    """Write against_scratch.json and .md beside this file."""
    work_dir.mkdir(parents=True, exist_ok=True)
    names = datasets.split(",")
    for name in names:
        with_split(data, name, work_dir / f"{name}.csv")
    with ThreadPoolExecutor(at_once) as pool:
        cases = [(name, weights, seed, work_dir) for name, seed, weights in product(names, SEEDS, MODELS)]
        runs = list(pool.map(run_one, *zip(*cases, strict=True)))
    (HERE / "against_scratch.json").write_text(json.dumps(runs, indent=1) + "\n")
    text = as_markdown(runs, names)
    (HERE / "against_scratch.md").write_text(text)
    print(text)


def as_markdown(runs: list[dict[str, Any]], names: list[str]) -> str:
    lines = [
        "Fine-tuned, test MAE, mean (sample standard deviation) of three seeds; minus: pretraining is better.",
        "",
        "| target | pretrained | from scratch | difference, seed by seed | predict the mean |",
        "|---|---|---|---|---|",
    ]
    for target in (target for name in names for target in TARGETS[name]):
        found = {
            weights: [run["test"][target] for run in runs if run["weights"] == weights and target in run["test"]]
            for weights in MODELS
        }
        mae = {weights: [each["mae"] for each in values] for weights, values in found.items()}
        trivial = statistics.mean(each["baseline_mae"] for each in found["pretrained"])
        lines.append(comparison_row(target, mae, trivial))
    options = [f"- {name}: `{text}`" for name, text in OPTIONS.items() if name in names]
    return "\n".join([*lines, "", "Options of `unimol2-hf finetune`:", "", *options]) + "\n"


if __name__ == "__main__":
    typer.run(main)
