#!/usr/bin/env python3
"""What intervals and spreads are worth: five-fold ensembles of frozen heads with descriptors, on two kinds of split.

    python benchmarks/finetuning/intervals.py --data DIR [--seeds 0,1,2]

`finetune --head frozen --descriptors rdkit --folds 5 --split-method random|scaffold`, step by step, each table
featurised once: ESOL, Biogen's four as one model, BBBP. DIR as for run.py. Writes intervals.json and intervals.md.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from finetune_command import BINARY, HERE, processor, targets_of
from heads import Runs, in_parts, run_nano, run_tables, vectors_of
from numpy.typing import NDArray
from rich.console import Console
from sklearn.metrics import log_loss

from unimol2_hf.calibration import calibrated_values
from unimol2_hf.data.splits import TEST, make_split
from unimol2_hf.finetuning.fitted import FittedTable
from unimol2_hf.finetuning.prepare import PreparedTable, prepare
from unimol2_hf.finetuning.settings import FinetuneSettings

METHODS = ("random", "scaffold")
SHARE = 0.2  # of the test rows that are called the most, and the least, certain


def run_table(name: str, data: Path, seeds: list[int]) -> Runs:
    options: dict[str, Any] = {"head": "frozen", "descriptors": "rdkit", "folds": 5}
    settings = FinetuneSettings(targets=tuple(targets_of(name, data)), **options)
    prepared = prepare(data / f"{name}.csv", settings, Console())
    runs = []
    vectors = vectors_of(prepared, settings)
    for method in METHODS:
        for seed in seeds:
            own = in_parts(prepared, make_split(prepared.names, method, seed))
            metrics, fitted, logits = run_nano(own, replace(settings, split_method=method, seed=seed), vectors)  # type: ignore[arg-type]
            for index, target in enumerate(own.table.target_names):
                told = {"table": name, "target": target, "method": method, "seed": seed}
                if name in BINARY:
                    runs.append(told | of_probabilities(own, fitted, logits, index))
                else:
                    runs.append(told | of_intervals(own, fitted, index, metrics[target]))
                print(runs[-1], flush=True)
    return runs


def of_intervals(prepared: PreparedTable, fitted: FittedTable, index: int, metrics: dict[str, Any]) -> dict[str, float]:
    """Coverage, width, and the mean absolute error of the most and the least certain."""
    name, rows = prepared.table.target_names[index], prepared.table.rows_of(TEST)
    labels = prepared.table.labels[rows, index]
    ends = np.array([fitted.results[row]["intervals"][name] for row in rows])
    errors, widths = np.abs(fitted.outputs[rows, index] - labels), ends[:, 1] - ends[:, 0]
    known = ~np.isnan(labels)
    most, least = extremes(widths[known])
    return {
        "coverage": metrics["interval_coverage"],
        "width": metrics["interval_width"],
        "mae_most_certain": float(errors[known][most].mean()),
        "mae_least_certain": float(errors[known][least].mean()),
        "mae": metrics["mae"],
    }


def of_probabilities(
    prepared: PreparedTable, fitted: FittedTable, logits: Sequence[NDArray[np.float64]], index: int
) -> dict[str, float]:
    """Log loss with and without the calibration, and of the most and the least certain by the spread."""
    name, rows = prepared.table.target_names[index], prepared.table.rows_of(TEST)
    labels, calibrated = prepared.table.labels[rows, index], fitted.outputs[rows, index]
    raw = calibrated_values(prepared.targets[index], np.array([logits[row][..., index].mean() for row in rows]), {})
    spreads = np.array([fitted.results[row]["spreads"][name] for row in rows])
    most, least = extremes(spreads)
    wrong = np.abs(calibrated - labels)
    return {
        "log_loss": float(log_loss(labels, calibrated, labels=[0, 1])),
        "log_loss_uncalibrated": float(log_loss(labels, raw, labels=[0, 1])),
        "error_most_certain": float(wrong[most].mean()),
        "error_least_certain": float(wrong[least].mean()),
    }


def extremes(uncertainties: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the fifth of least and of greatest uncertainty."""
    order, count = np.argsort(uncertainties), round(SHARE * len(uncertainties))
    return order[:count], order[-count:]


def as_markdown(runs: Runs) -> str:
    lines = [
        f"`python benchmarks/finetuning/intervals.py --data DIR` on {processor()}, two cores. Test part, mean of the",
        "seeds; intervals that are to hold 90 %; the most and the least certain fifth of the molecules, by the",
        "width of the interval (regression: MAE) or the spread (classes: |label - probability|).",
        "",
        "| split | target | held (each seed) | mean width | MAE | MAE of the most certain | of the least certain |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        shares = []
        for target in dict.fromkeys(run["target"] for run in runs if "coverage" in run):
            own = [run for run in runs if (run["target"], run["method"]) == (target, method)]
            shares += [run["coverage"] for run in own]
            mean = {key: float(np.mean([run[key] for run in own])) for key in own[0] if isinstance(own[0][key], float)}
            each = " ".join(f"{run['coverage']:.3f}" for run in own)
            told = [mean[key] for key in ("width", "mae", "mae_most_certain", "mae_least_certain")]
            cells = " | ".join(f"{value:.3f}" for value in told)
            lines.append(f"| {method} | {target} | {mean['coverage']:.3f} ({each}) | {cells} |")
        lines.append(f"| {method} | mean of all | **{np.mean(shares):.3f}** | | | | |")
    lines += ["", "| split | target | log loss | uncalibrated | error of the most certain | of the least certain |"]
    lines.append("|---|---|---|---|---|---|")
    for method in METHODS:
        for target in dict.fromkeys(run["target"] for run in runs if "log_loss" in run):
            own = [run for run in runs if (run["target"], run["method"]) == (target, method)]
            keys = ("log_loss", "log_loss_uncalibrated", "error_most_certain", "error_least_certain")
            cells = " | ".join(f"{np.mean([run[key] for run in own]):.3f}" for key in keys)
            lines.append(f"| {method} | {target} | {cells} |")
    return "\n".join(lines) + "\n"


def main(
    data: Annotated[Path, typer.Option(help="folder with the CSV files")],
    tables: Annotated[str, typer.Option(help="comma-separated")] = "esol,biogen_adme,bbbp",
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0,1,2",
) -> None:
    """Run each table in turn."""
    chosen = [int(seed) for seed in seeds.split(",")]
    run_tables(HERE / "intervals.json", tables, lambda name: run_table(name, data, chosen), as_markdown)


if __name__ == "__main__":
    typer.run(main)
