#!/usr/bin/env python3
"""Fine-tune on ESOL and Biogen ADME with fixed scaffold splits, through the command line that users type.

    python benchmarks/finetuning/run.py --data DIR [--datasets esol,biogen_adme] [--seeds 0] [finetune options]

DIR holds `<name>.csv` and `splits/<name>.csv` (canonical SMILES, columns seed0, seed1, ...). Writes results.json and
results.md beside this file; each run keeps its folder under --work-dir.
"""

import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from splits import with_split

HERE = Path(__file__).parent
TARGETS = {
    "esol": ["logSolubility"],
    "biogen_adme": ["hlm_clint", "mdr1_er", "solubility", "hppb", "rppb", "rlm_clint"],
}
# MAE on the same split (seed 0): shared/spec/baselines.md. None: not measured there.
BASELINES: dict[str, dict[str, float | None]] = {
    "logSolubility": {"ECFP4 + RF": 0.758, "RDKit + HistGB": 0.588, "chemprop": 0.592},
    "hlm_clint": {"ECFP4 + RF": 0.406, "RDKit + HistGB": 0.348, "chemprop": 0.353},
    "mdr1_er": {"ECFP4 + RF": 0.402, "RDKit + HistGB": 0.339, "chemprop": 0.335},
    "solubility": {"ECFP4 + RF": 0.371, "RDKit + HistGB": 0.380, "chemprop": 0.346},
    "rlm_clint": {"ECFP4 + RF": 0.471, "RDKit + HistGB": 0.414, "chemprop": 0.417},
    "hppb": {"ECFP4 + RF": None, "RDKit + HistGB": None, "chemprop": None},
    "rppb": {"ECFP4 + RF": None, "RDKit + HistGB": None, "chemprop": None},
}


def run_one(name: str, seed: int, data: Path, work_dir: Path, options: list[str]) -> dict[str, Any]:
    """One `unimol2-hf finetune`; returns its metrics with the command and the time it took."""
    work_dir.mkdir(parents=True, exist_ok=True)
    table, folder = work_dir / f"{name}.csv", work_dir / f"{name}_seed{seed}"
    with_split(data, name, table)
    command = ["unimol2-hf", "finetune", str(table), "--targets", ",".join(TARGETS[name])]
    command += ["--split-column", f"seed{seed}", "--seed", str(seed), "--output-dir", str(folder), *options]
    start = time.monotonic()
    with (work_dir / f"{name}_seed{seed}.log").open("w") as log:
        executable = str(Path(sys.executable).with_name("unimol2-hf"))
        subprocess.run([executable, *command[1:]], stdout=log, stderr=subprocess.STDOUT, check=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "dataset": name,
        "seed": seed,
        "command": shlex.join(command),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        **metrics,
    }


def as_markdown(runs: list[dict[str, Any]]) -> str:
    lines = [
        "Test part of the scaffold split; MAE, lower is better. Baselines: seed 0, from shared/spec/baselines.md.",
        "",
        "| target | seed | n | MAE | RMSE | R2 | train mean | ECFP4 + RF | RDKit + HistGB | chemprop |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        for target, metrics in run["test"].items():
            ours = [_number(metrics[name]) for name in ("mae", "rmse", "r2", "baseline_mae")]
            others = [_number(BASELINES[target][name] if run["seed"] == 0 else None) for name in BASELINES[target]]
            lines.append(f"| {target} | {run['seed']} | {metrics['count']} | " + " | ".join([*ours, *others]) + " |")
    commands = [f"- `{run['command']}` ({run['minutes']} min, {run['machine']})" for run in runs]
    return "\n".join([*lines, "", "Commands:", "", *commands]) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="folder with the CSV files and splits/")],
    datasets: Annotated[str, typer.Option(help="comma-separated")] = "esol,biogen_adme",
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0",
    work_dir: Annotated[Path, typer.Option()] = Path("runs/finetuning"),
    results: Annotated[Path, typer.Option(help="JSON to write; runs of other data sets or seeds in it stay")] = HERE
    / "results.json",
) -> None:
    """Run every data set and seed in turn; unknown options go to `unimol2-hf finetune`."""
    runs = json.loads(results.read_text()) if results.exists() else []
    for name in datasets.split(","):
        for seed in map(int, seeds.split(",")):
            run = run_one(name, seed, data, work_dir, list(context.args))
            runs = [old for old in runs if (old["dataset"], old["seed"]) != (name, seed)] + [run]
            runs.sort(key=lambda entry: (-len(entry["dataset"]), entry["dataset"], entry["seed"]))
            results.write_text(json.dumps(runs, indent=1) + "\n")
            results.with_suffix(".md").write_text(as_markdown(runs))


app = typer.Typer()
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(main)

if __name__ == "__main__":
    app()
