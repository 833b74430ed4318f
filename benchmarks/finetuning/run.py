#!/usr/bin/env python3
"""unimol2-nano fine-tuned by the defaults on four public tables, beside two simple models that the same command fits.

`--head finetuned` says so to tables that would get a frozen head (heads.py measures those); results.md is from before
there were any.

    python benchmarks/finetuning/run.py --data DIR [--tables esol,bbbp,tox21,biogen_adme] [--seeds 0] [finetune options]

DIR holds `<name>.csv` and `splits/<name>.csv` (canonical SMILES, columns seed0, seed1, ...). Writes results.json,
results.md and `predictions/<name>.parquet` (seed, row of the table, part, labels, predictions) beside this file;
heads.py tells the mean over seeds.
"""

import json
import os
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from finetune_command import BINARY, HERE, finetune, on_split, packaged_model, processor, targets_of

MODELS = {"nano": None, "descriptors, boosting": "descriptor_boosting", "ECFP4, forest": "ecfp4_forest"}


def run_one(name: str, seed: int, data: Path, work_dir: Path, options: list[str]) -> dict[str, Any]:
    """One `unimol2-hf finetune`; returns its metrics with the command and the time it took."""
    folder = work_dir / f"{name}_seed{seed}"
    arguments = ["--head", "finetuned", *on_split(name, data, seed), *options]
    run = finetune(data / f"{name}.csv", targets_of(name, data), folder, *arguments)
    keep_predictions(folder, seed, HERE / "predictions" / f"{name}.parquet")
    return {
        "table": name,
        "seed": seed,
        "model": packaged_model(),
        "command": run.command.replace(str(data), "DIR"),
        "minutes": round(run.minutes, 1),
        "machine": f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}",
        **run.report,
    }


def keep_predictions(folder: Path, seed: int, output: Path) -> None:
    """Labels and predictions of the validation and the test part, by seed and row of the table; no molecules."""
    rows = pd.read_csv(folder / "report" / "rows.csv")
    left_out = ["smiles", "conformer", "error", "error_code", "note"]
    kept = rows[rows["split"].isin(["valid", "test"])].drop(columns=left_out).rename_axis("row").reset_index()
    kept.insert(0, "seed", seed)
    if output.exists():
        before = pd.read_parquet(output)
        kept = pd.concat([before[before["seed"] != seed], kept])
    output.parent.mkdir(exist_ok=True)
    kept.to_parquet(output, index=False)


def as_markdown(runs: list[dict[str, Any]]) -> str:
    lines = [
        "Test part of the scaffold split, seed 0; MAE (lower is better), of binary targets ROC-AUC (higher is better),",
        "with its 95 % interval (bootstrap over molecules). The best of the three in bold; all by one command a table.",
        "",
        f"| table | target | n | {' | '.join(MODELS)} | mean or share of the training labels |",
        "|---|---|---|" + "---|" * (len(MODELS) + 1),
    ]
    for run in (run for run in runs if run["seed"] == 0):
        for target, metrics in run["test"].items():
            key = "roc_auc" if run["table"] in BINARY else "mae"
            found = [metrics if name is None else run["baselines"][name][target] for name in MODELS.values()]
            best = (max if key == "roc_auc" else min)(each[key] for each in found)
            cells = [_cell(each, key, each[key] == best) for each in found]
            constant = "0.500" if key == "roc_auc" else f"{metrics['baseline_mae']:.3f}"
            lines.append(f"| {run['table']} | {target} | {metrics['count']} | {' | '.join(cells)} | {constant} |")
        lines += _mean_line(run)
    commands = [f"- `{run['command']}` ({run['minutes']} min, other work beside; {run['machine']})" for run in runs]
    return "\n".join([*lines, "", "Commands:", "", *commands]) + "\n"


def _mean_line(run: dict[str, Any]) -> list[str]:
    if len(run["test"]) == 1:
        return []
    key = "roc_auc" if run["table"] in BINARY else "mae"
    blocks = [run["test"] if name is None else run["baselines"][name] for name in MODELS.values()]
    means = [sum(metrics[key] for metrics in block.values()) / len(block) for block in blocks]
    best = (max if key == "roc_auc" else min)(means)
    cells = [f"**{mean:.3f}**" if mean == best else f"{mean:.3f}" for mean in means]
    return [f"| {run['table']} | mean of {len(run['test'])} | | {' | '.join(cells)} | |"]


def _cell(metrics: dict[str, Any], key: str, best: bool) -> str:
    low, high = metrics[f"{key}_interval"] or (float("nan"), float("nan"))
    value = f"**{metrics[key]:.3f}**" if best else f"{metrics[key]:.3f}"
    return f"{value} ({low:.3f} to {high:.3f})"


def main(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="folder with the CSV files and splits/")],
    tables: Annotated[str, typer.Option(help="comma-separated")] = "esol,bbbp,biogen_adme,tox21",
    seeds: Annotated[str, typer.Option(help="of split and run, comma-separated")] = "0",
    work_dir: Annotated[Path, typer.Option()] = Path("runs/finetuning"),
) -> None:
    """Run every table in turn; unknown options go to `unimol2-hf finetune`."""
    results = HERE / "results.json"
    everything = json.loads(results.read_text()) if results.exists() else []
    # What another edition gave is none of this one's.
    model = packaged_model()
    runs = [run for run in everything if run.get("model") == model]
    for name in {run["table"] for run in everything} - {run["table"] for run in runs}:
        (HERE / "predictions" / f"{name}.parquet").unlink(missing_ok=True)
    for name, seed in product(tables.split(","), map(int, seeds.split(","))):
        run = run_one(name, seed, data, work_dir, list(context.args))
        runs = [old for old in runs if (old["table"], old["seed"]) != (name, seed)] + [run]
        results.write_text(json.dumps(runs, indent=1) + "\n")
        results.with_suffix(".md").write_text(as_markdown(runs))


app = typer.Typer()
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(main)

if __name__ == "__main__":
    app()
