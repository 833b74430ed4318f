#!/usr/bin/env python3
"""Losses of several sizes, the law fitted to all but the largest, and its judgement on the largest.

    for size in 0.2m 0.4m 0.8m 1.3m; do
        python benchmarks/scaling_law/scaling_runs.py train $size
    done
    python benchmarks/scaling_law/scaling_runs.py fit

The largest is unimol2-nano (`unimol2-hf pretrain --config recipes/nano/first_edition/nano.yaml`). The others are runs
of that file, with other sizes, fewer steps and a rate that stays: same samples in the same order, same seed, batch,
warm-up, learning rate and validation noise. So all curves are of one constant learning rate; nano's steps in its
decay are left out. Runs lie in runs/scaling/SIZE and go on where they were; `fit` reads their logs alone. S is
counted in steps of `samples_per_step` samples, M without the lookup tables: at these sizes they are a third of the
parameters, and most of their rows are never read."""

import json
import sys
from dataclasses import asdict, replace
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
# Layers, atom width, pair width, inner width; nano, the largest, has 6, 192, 64, 16.
SIZES = {"0.2m": (2, 64, 32, 8), "0.4m": (3, 96, 32, 8), "0.8m": (4, 128, 48, 12), "1.3m": (5, 160, 48, 12)}
RUN_OF_NANO = Path("recipes/nano/first_edition/nano.yaml")

app = typer.Typer(no_args_is_help=True)


@app.command()
def train(
    size: Annotated[str, typer.Argument(help=", ".join(SIZES))],
    runs: Annotated[Path, typer.Option()] = Path("runs/scaling"),
    steps: Annotated[int, typer.Option()] = 700,
) -> None:
    """Pretrain one size."""
    from unimol2_hf.cli.options import read_settings  # noqa: PLC0415
    from unimol2_hf.pretraining.pretrain import pretrain  # noqa: PLC0415 - `fit` needs no torch
    from unimol2_hf.pretraining.settings import PretrainSettings  # noqa: PLC0415

    of_nano = read_settings(PretrainSettings, RUN_OF_NANO)
    layers, width, pair_width, inner = SIZES[size]
    fields = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": width // 16}
    fields |= {"pair_hidden_size": pair_width, "pair_inner_size": inner}
    settings = replace(
        of_nano,
        output_dir=str(runs / size),
        model={**of_nano.model, **fields},
        max_steps=steps,
        ema_decay=None,
        trainer={"lr_scheduler_type": "constant_with_warmup"},
    )
    pretrain(settings, Console())


def read_run(folder: Path, tables: bool = False) -> LossPoints:
    """Validation losses of a run by step, up to where its learning rate begins to decay."""
    history = json.loads((folder / "log_history.json").read_text())
    settings = json.loads((folder / "settings.json").read_text())
    decay = settings["trainer"].get("lr_scheduler_kwargs", {}).get("num_decay_steps", 0)
    last = settings["max_steps"] - decay
    points = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    points = [(step, loss) for step, loss in points if step <= last]
    millions = parameters_of(folder / "model" / "model.safetensors", tables) / 1e6
    steps, losses = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    return LossPoints(np.full(len(points), millions), steps, losses)


def parameters_of(weights: Path, tables: bool) -> int:
    """Parameters in a file, with or without its lookup tables."""
    from safetensors import safe_open  # noqa: PLC0415 - the law itself needs none

    with safe_open(weights, framework="numpy") as file:
        names = [name for name in file.keys() if tables or not name.endswith("_embeddings.weight")]  # noqa: SIM118 - no mapping
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in names)


@app.command()
def fit(
    runs: Annotated[Path, typer.Option()] = Path("runs/scaling"),
    largest: Annotated[Path, typer.Option(help="the run that is held out")] = Path("runs/pretraining/nano"),
    drop: Annotated[float, typer.Option(help="share left out at the start of each fitted run")] = 0.25,
    judged_from: Annotated[int | None, typer.Option(help="step; default where the fitted runs end")] = None,
    output: Annotated[Path, typer.Option()] = HERE,
) -> None:
    """Write losses.json, scaling_law.json, scaling_law.md and scaling_law.png."""
    folders = [path.parent for path in runs.glob("*/log_history.json")]
    if len(folders) < 2:
        sys.exit(f"{len(folders)} finished runs in {runs}; at least 2 are needed")
    smaller, held_out = _load(folders, largest, tables=False)
    law, report = _fitted(smaller, held_out, drop, judged_from)
    _, with_tables = _fitted(*_load(folders, largest, tables=True), drop, judged_from, repeats=0)
    report["judged_with_tables"] = with_tables["judged"]
    (output / "scaling_law.json").write_text(json.dumps(report, indent=1) + "\n")
    loaded = [*smaller, held_out]
    losses = [{name: getattr(run, name).tolist() for name in asdict(run)} for run in loaded]
    (output / "losses.json").write_text(json.dumps(losses) + "\n")
    (output / "scaling_law.md").write_text(_table(report))
    draw(loaded, law, output / "scaling_law.png")
    print(_table(report))


def _load(folders: list[Path], largest: Path, tables: bool) -> tuple[list[LossPoints], LossPoints]:
    loaded = [read_run(folder, tables) for folder in folders]
    return sorted(loaded, key=lambda each: float(each.parameters[0])), read_run(largest, tables)


def _fitted(
    smaller: list[LossPoints], held_out: LossPoints, drop: float, judged_from: int | None, repeats: int = 200
) -> tuple[ScalingLaw, dict[str, Any]]:
    """The law of the smaller sizes, and how it does on them and on three stretches of the largest one."""
    points = join([_later(run, drop) for run in smaller])
    law = ScalingLaw.fit(points)
    start = float(points.steps.min())
    end = float(points.steps.max()) if judged_from is None else float(judged_from)
    stretches = {
        "the sizes fitted": points,
        f"largest, steps {start:.0f} to {end:.0f}: a larger model": held_out[
            (held_out.steps >= start) & (held_out.steps <= end)
        ],
        f"largest, from step {end:.0f}: larger, and trained longer": held_out[held_out.steps > end],
        f"largest, all steps from {start:.0f}": held_out[held_out.steps >= start],
    }
    return law, {
        "law": asdict(law),
        "intervals_95": ScalingLaw.bootstrap(points, repeats) if repeats else {},
        "millions": [float(run.parameters[0]) for run in (*smaller, held_out)],
        "judged": {name: asdict(law.judge(part)) for name, part in stretches.items() if len(part) > 1},
        "compute_optimal": _compute_optimal(law, float((held_out.parameters * held_out.steps).max())),
    }


def _compute_optimal(law: ScalingLaw, largest: float) -> list[dict[str, float]]:
    """Sizes and steps for budgets up to ten times the largest run's."""
    budgets = np.geomspace(largest / 100, 10 * largest, 4)
    millions, steps = law.compute_optimal(budgets)
    names = ("compute", "millions", "steps")
    return [dict(zip(names, map(float, row), strict=True)) for row in zip(budgets, millions, steps, strict=True)]


def _later(run: LossPoints, drop: float) -> LossPoints:
    return run[run.steps > drop * run.steps.max()]


def _table(report: dict[str, Any]) -> str:
    sizes = ", ".join(f"{millions:.2f}" for millions in report["millions"])
    rows = [f"Millions of parameters without lookup tables: {sizes}; the last is held out.", ""]
    rows += ["| coefficient | fit | 95 % interval |", "|---|---|---|"]
    for name, value in report["law"].items():
        low, high = report["intervals_95"][name]
        rows.append(f"| {name.strip('_')} | {value:.4g} | {low:.4g} to {high:.4g} |")
    for key, title in (("judged", "judged on"), ("judged_with_tables", "the same, M with the lookup tables")):
        rows += ["", f"| {title} | RMAE | MSE | R2 | Pearson |", "|---|---|---|---|---|"]
        for name, values in report[key].items():
            cells = " | ".join(f"{values[metric]:.4g}" for metric in ("rmae", "mse", "r2", "pearson"))
            rows.append(f"| {name} | {cells} |")
    rows += ["", "| compute, M S | best M, millions | best S, steps |", "|---|---|---|"]
    rows += [
        f"| {each['compute']:.4g} | {each['millions']:.3g} | {each['steps']:.4g} |"
        for each in report["compute_optimal"]
    ]
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
