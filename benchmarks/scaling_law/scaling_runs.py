#!/usr/bin/env python3
"""Losses of several sizes, the law fitted to all but the largest, and its judgement on the largest.

    python benchmarks/scaling_law/scaling_runs.py train --library runs/pretraining/library
    python benchmarks/scaling_law/scaling_runs.py fit

Runs are `unimol2-hf pretrain` runs in runs/scaling/SIZE and go on where they were; `fit` reads their logs alone. S is
counted in steps of `samples_per_step` samples.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import typer
from rich.console import Console

mpl.use("Agg")

from matplotlib import pyplot as plt
from scaling_law import LossPoints, ScalingLaw, join

HERE = Path(__file__).parent
# Layers, atom width, pair width, inner width; in the published models' proportions as far as 16-wide heads allow.
SIZES = {
    "0.2m": (3, 64, 32, 8),
    "0.5m": (4, 96, 48, 16),
    "1.2m": (5, 144, 64, 16),
    "2.4m": (6, 192, 96, 24),
    "5m": (7, 256, 128, 32),
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pair_dropout_prob": 0.0}

app = typer.Typer(no_args_is_help=True)


def model_fields(size: str) -> dict[str, Any]:
    layers, width, pair_width, inner = SIZES[size]
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 16,
        "pair_hidden_size": pair_width,
        "pair_inner_size": inner,
        **NO_DROPOUT,
    }


@app.command()
def train(
    library: Annotated[Path, typer.Option(help="folder of `unimol2-hf conformers build`")],
    runs: Annotated[Path, typer.Option()] = Path("runs/scaling"),
    steps: Annotated[int, typer.Option()] = 3000,
    samples_per_step: Annotated[int, typer.Option()] = 64,
    sizes: Annotated[str, typer.Option(help="comma-separated")] = ",".join(SIZES),
) -> None:
    """Pretrain each size with the same samples, seed, schedule and validation noise."""
    from unimol2_hf.pretraining.pretrain import pretrain  # noqa: PLC0415 - `fit` needs no torch
    from unimol2_hf.pretraining.settings import PretrainSettings  # noqa: PLC0415

    for size in sizes.split(","):
        settings = PretrainSettings(
            data=str(library),
            output_dir=str(runs / size),
            scale="micro",
            model=model_fields(size),
            max_steps=steps,
            samples_per_step=samples_per_step,
            max_rows=64,
            max_pairs=21_845,
            learning_rate=1e-3,
            warmup_steps=max(1, steps // 15),
            validation_molecules=1000,
            logging_steps=50,
            eval_steps=100,
            save_steps=100,
            save_total_limit=2,
        )
        pretrain(settings, Console())


def read_run(folder: Path) -> LossPoints:
    """Validation losses of a run by step."""
    history = json.loads((folder / "log_history.json").read_text())
    points = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    millions = parameters_of(folder / "model" / "model.safetensors") / 1e6
    steps, losses = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    return LossPoints(np.full(len(points), millions), steps, losses)


def parameters_of(weights: Path) -> int:
    from safetensors import safe_open  # noqa: PLC0415 - the law itself needs none

    with safe_open(weights, framework="numpy") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118 - no mapping


@app.command()
def fit(
    runs: Annotated[Path, typer.Option()] = Path("runs/scaling"),
    drop: Annotated[float, typer.Option(help="share left out at the start of each run")] = 0.25,
    judged: Annotated[
        float, typer.Option(help="share of the largest run, at its end, on which the law is judged")
    ] = 0.75,
    output: Annotated[Path, typer.Option()] = HERE,
) -> None:
    """Write losses.json, scaling_law.json, scaling_law.md and scaling_law.png."""
    folders = [path.parent for path in runs.glob("*/log_history.json")]
    loaded = sorted((read_run(folder) for folder in folders), key=lambda each: float(each.parameters[0]))
    if len(loaded) < 3:
        sys.exit(f"{len(loaded)} finished runs in {runs}; at least 3 are needed")
    *smaller, largest = loaded
    fitted_to = join([_later(run, drop) for run in smaller])
    law, intervals = ScalingLaw.fit(fitted_to), ScalingLaw.bootstrap(fitted_to)
    held_out = _later(largest, 1 - judged)
    report = {
        "law": asdict(law),
        "intervals_95": intervals,
        "fitted": asdict(law.judge(fitted_to)),
        "held_out_millions": float(largest.parameters[0]),
        "held_out": asdict(law.judge(held_out)),
        "compute_optimal": [
            dict(zip(("compute", "millions", "steps"), (c, *map(float, law.compute_optimal(c))), strict=True))
            for c in np.geomspace(
                float(fitted_to.steps.min()), 10 * float((largest.parameters * largest.steps).max()), 6
            )
        ],
    }
    (output / "scaling_law.json").write_text(json.dumps(report, indent=1) + "\n")
    losses = [{name: getattr(run, name).tolist() for name in asdict(run)} for run in loaded]
    (output / "losses.json").write_text(json.dumps(losses) + "\n")
    (output / "scaling_law.md").write_text(_table(report))
    draw(loaded, law, output / "scaling_law.png")
    print(_table(report))


def _compute_optimal(law: ScalingLaw, largest: float) -> list[dict[str, float]]:
    """Sizes and steps for budgets up to ten times the largest run's."""
    budgets = np.geomspace(largest / 100, 10 * largest, 4)
    millions, steps = law.compute_optimal(budgets)
    names = ("compute", "millions", "steps")
    return [dict(zip(names, map(float, row), strict=True)) for row in zip(budgets, millions, steps, strict=True)]


def _later(run: LossPoints, drop: float) -> LossPoints:
    return run[run.steps > drop * run.steps.max()]


def _table(report: dict[str, Any]) -> str:
    rows = ["| coefficient | fit | 95 % interval |", "|---|---|---|"]
    for name, value in report["law"].items():
        low, high = report["intervals_95"][name]
        rows.append(f"| {name.strip('_')} | {value:.4g} | {low:.4g} to {high:.4g} |")
    rows += ["", "| judged on | RMAE | MSE | R2 | Pearson |", "|---|---|---|---|---|"]
    titles = {"fitted": "the sizes fitted", "held_out": f"{report['held_out_millions']:.2f}M, held out"}
    for name, title in titles.items():
        cells = " | ".join(f"{report[name][metric]:.4g}" for metric in ("rmae", "mse", "r2", "pearson"))
        rows.append(f"| {title} | {cells} |")
    return "\n".join(rows) + "\n"


def draw(runs: list[LossPoints], law: ScalingLaw, path: Path) -> None:
    """Figures 3 and 4 of the paper: curves by size, and observed beside predicted for the size held out."""
    figure, (curves, beside) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for run in runs:
        (line,) = curves.plot(run.steps, run.losses, label=f"{run.parameters[0]:.2f}M")
        curves.plot(run.steps, law.predict(run.parameters, run.steps), "--", color=line.get_color(), linewidth=0.9)
    curves.set(
        xscale="log", yscale="log", xlabel="steps", ylabel="validation loss", title="observed, and the law (dashed)"
    )
    curves.legend()
    largest = runs[-1]
    beside.plot(largest.steps, largest.losses, "o", markersize=3, label="observed")
    beside.plot(largest.steps, law.predict(largest.parameters, largest.steps), label="predicted from smaller ones")
    beside.set(xlabel="steps", ylabel="validation loss", title=f"{largest.parameters[0]:.2f}M, held out")
    beside.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    app()
