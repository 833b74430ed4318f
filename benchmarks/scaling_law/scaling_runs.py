#!/usr/bin/env python3
"""Losses of five sizes, the law fitted to four of them, and its judgement on the fifth and on later steps.

    python benchmarks/scaling_law/scaling_runs.py train 0.3m --library DIR    # and the other sizes
    python benchmarks/scaling_law/scaling_runs.py fit
    python benchmarks/scaling_law/scaling_runs.py judge

Runs are those of recipes/nano/nano.yaml, of another width, in float32 and in steps of SAMPLES_PER_STEP: same samples in
the same order, same seed, rate, warm-up and validation noise; DIR is its library. Each size has one run at a constant
rate; from its checkpoints others go on with a rate that falls to 0 over their last tenth, and what these end with is
what the law is about. `train` goes on where it was; two sizes at a time, each with OMP_NUM_THREADS=1, keep two cores
busy.

`fit` reads the four smaller sizes up to step FITTED_UP_TO and writes what the law says of the rest (predictions.json),
`judge` compares that with what was measured. Each for two losses: that of the run (weighted, with the graph targets),
and the paper's (token, coordinate and distance, unweighted; half of the samples are neither masked nor noised here). S
is counted in steps of `samples_per_step` samples, M without lookup tables and without the head of the graph targets,
which is none of the model's.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import torch
import typer
import yaml
from rich.console import Console

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from scaling_law import LossPoints, ScalingLaw, join

from unimol2_hf import UniMol2Config, UniMol2ForPreTraining
from unimol2_hf.data.atomic_files import SETTINGS_FILE, whole_folder, write_settings
from unimol2_hf.pretraining.pretrain import CHECKPOINTS, pretrain
from unimol2_hf.pretraining.settings import PAPER_LOSSES, PretrainSettings, loss_name

HERE = Path(__file__).parent
RECIPE = HERE.parents[1] / "recipes" / "nano" / "nano.yaml"
RUNS = Path("runs/scaling")
# Atom width; 16 a head, as the recipe has it.
SIZES = {"0.3m": 64, "0.6m": 112, "1.1m": 176, "2.1m": 256, "4.4m": 384}
LARGEST = "4.4m"
ENDS = (1000, 1500, 2000, 2500, 3000, 3500)  # of the runs whose rate falls; the warm-up takes 500 steps
FITTED_UP_TO = 2500
DECAY = 10  # the last such part of a run
EVERY = 50  # steps that divide all starts; ten times as many, an evaluation, divide all ends
# Half of nano's: a step costs half as much, and steps past the warm-up are what the law needs.
SAMPLES_PER_STEP = 16
RUNS_LOSS, PAPER_LOSS = "the run's loss", "the paper's three, unweighted"
LOSSES = (RUNS_LOSS, PAPER_LOSS)
Result = dict[str, Any]
app = typer.Typer(no_args_is_help=True)


def start_of(end: int) -> int:
    """The step from which on the rate of a run falls."""
    return end - end // DECAY


def recipe_of(size: str, data: str = "unused", output_dir: str = "unused") -> PretrainSettings:
    """nano's recipe with the width of a size."""
    recipe = yaml.safe_load(RECIPE.read_text())
    width = {"hidden_size": SIZES[size], "num_attention_heads": SIZES[size] // 16}
    recipe |= {"model": {**recipe["model"], **width}, "data": data, "output_dir": output_dir}
    recipe |= {"samples_per_step": SAMPLES_PER_STEP, "precision": "float32"}
    return PretrainSettings(**recipe)


@app.command()
def train(
    size: Annotated[str, typer.Argument(help=", ".join(SIZES))],
    library: Annotated[Path, typer.Option(help="of recipes/nano/library.py")],
    runs: Annotated[Path, typer.Option()] = RUNS,
    ends: Annotated[str, typer.Option(help="steps at which a run ends, comma-separated")] = ",".join(map(str, ENDS)),
) -> None:
    """Pretrain one size: at a constant rate, then from its checkpoints with one that falls."""
    steps = sorted(map(int, ends.split(",")))
    constant = replace(
        recipe_of(size, str(library), str(runs / size / "constant")),
        ema_decay=None, max_steps=start_of(steps[-1]),
        logging_steps=EVERY, save_steps=EVERY, eval_steps=EVERY * 10, save_total_limit=100,
    )  # fmt: skip
    pretrain(constant, Console())
    for end in steps:
        start = start_of(end)
        falling = {"num_decay_steps": end - start, "decay_type": "linear"}
        settings = replace(
            constant,
            output_dir=str(runs / size / f"decayed_{end}"),
            max_steps=end,
            trainer={"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": falling},
        )
        folder = Path(settings.output_dir)
        if not folder.exists():
            with whole_folder(folder) as draft:
                name = Path(CHECKPOINTS) / f"checkpoint-{start}"
                shutil.copytree(Path(constant.output_dir) / name, draft / name)
                write_settings(draft / SETTINGS_FILE, settings)
        pretrain(settings, Console())


def weights_of(kind: str) -> dict[str, float]:
    """What each part of the validation loss counts."""
    weights = recipe_of(LARGEST).all_loss_weights()
    if kind == PAPER_LOSS:
        weights = {loss_name(part): 1.0 for part in PAPER_LOSSES}
    return {f"eval_{name}": weight for name, weight in weights.items()}


def loss_of(folder: Path, end: int, kind: str) -> float:
    """The validation loss with which a run ended."""
    history = json.loads((folder / "log_history.json").read_text())
    last = next(entry for entry in history if "eval_loss" in entry and entry["step"] == end)
    return float(sum(weight * last[name] for name, weight in weights_of(kind).items()))


def points_of(runs: Path, size: str, kind: str, ends: Sequence[int] = ENDS) -> LossPoints:
    """The losses with which a size's runs ended, by their steps; other ends are not read."""
    folders = {end: runs / size / f"decayed_{end}" for end in ends}
    losses = [loss_of(folder, end, kind) for end, folder in folders.items()]
    return LossPoints(np.full(len(ends), millions_of(size)), np.array(ends, dtype=float), np.array(losses))


def millions_of(size: str) -> float:
    """Parameters by the shapes alone, without lookup tables and the head of the graph targets."""
    recipe = recipe_of(size)
    config = UniMol2Config.from_scale(recipe.scale, **recipe.model)
    with torch.device("meta"):
        named = UniMol2ForPreTraining(config).named_parameters()
        return sum(weight.numel() for name, weight in named if is_counted(name)) / 1e6


def is_counted(name: str) -> bool:
    """Whether a weight is one of the model's, and no lookup table."""
    return not name.startswith("graph_target_head.") and not name.endswith("_embeddings.weight")


@app.command()
def fit(
    runs: Annotated[Path, typer.Option()] = RUNS,
    output: Annotated[Path, typer.Option()] = HERE,
    repeats: Annotated[int, typer.Option(help="of the bootstrap")] = 200,
) -> None:
    """Write losses.json, of what is fitted, and predictions.json; the largest size and later steps are not read."""
    report: Result = {}
    losses: Result = {}
    ends = [end for end in ENDS if end <= FITTED_UP_TO]
    for kind in LOSSES:
        found = {size: points_of(runs, size, kind, ends) for size in SIZES if size != LARGEST}
        points = join(list(found.values()))
        law = ScalingLaw.fit(points)
        losses[kind] = as_lists(points)
        report[kind] = {
            "law": asdict(law),
            "intervals_95": ScalingLaw.bootstrap(points, repeats),
            "fitted": asdict(law.judge(points)),
            "predicted": {size: predictions(law, millions_of(size)) for size in SIZES},
        }
    (output / "losses.json").write_text(json.dumps(losses, indent=1) + "\n")
    (output / "predictions.json").write_text(json.dumps(report, indent=1) + "\n")


def as_lists(points: LossPoints) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in asdict(points).items()}


def predictions(law: ScalingLaw, millions: float) -> Result:
    """What the law says of a size at all ends."""
    values = law.predict(np.full(len(ENDS), millions), np.array(ENDS, dtype=float))
    return {"millions": millions, **dict(zip(map(str, ENDS), values.tolist(), strict=True))}


@app.command()
def judge(runs: Annotated[Path, typer.Option()] = RUNS, output: Annotated[Path, typer.Option()] = HERE) -> None:
    """Write measured.json, scaling_law.md and scaling_law.png: predictions.json beside what was measured."""
    report = json.loads((output / "predictions.json").read_text())
    measured: Result = {}
    points = {kind: {size: points_of(runs, size, kind) for size in SIZES} for kind in report}
    for kind, found in points.items():
        law = ScalingLaw(**report[kind]["law"])
        later = join([run[run.steps > FITTED_UP_TO] for size, run in found.items() if size != LARGEST])
        held_out = found[LARGEST]
        stretches = {
            f"largest size, up to step {FITTED_UP_TO}": held_out[held_out.steps <= FITTED_UP_TO],
            f"largest size, all steps to {ENDS[-1]}": held_out,
            f"smaller sizes, steps after {FITTED_UP_TO}": later,
        }
        measured[kind] = {
            "points": {size: as_lists(run) for size, run in found.items()},
            "judged": {name: asdict(law.judge(part)) for name, part in stretches.items()},
        }
    (output / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    text = as_markdown(report, measured)
    (output / "scaling_law.md").write_text(text)
    print(text)
    draw(points, {kind: ScalingLaw(**own["law"]) for kind, own in report.items()}, output)


def as_markdown(report: Result, measured: Result) -> str:
    first = next(iter(report.values()))
    sizes = ", ".join(f"{own['millions']:.2f}" for own in first["predicted"].values())
    lines = [
        f"Millions of parameters without lookup tables: {sizes}; the last is held out. Intervals are of points",
        "drawn anew within each size; these share the beginning of a run and a seed, so the true ones are wider.",
        "",
    ]
    for kind, own in report.items():
        lines += [f"## {kind[0].upper()}{kind[1:]}", "", "| coefficient | fit | 95 % interval |", "|---|---|---|"]
        for name, value in own["law"].items():
            low, high = own["intervals_95"][name]
            lines.append(f"| {name.strip('_')} | {value:.4g} | {low:.4g} to {high:.4g} |")
        lines += ["", "| judged on | RMAE | MSE | R2 | Pearson |", "|---|---|---|---|---|"]
        judged = {"what was fitted": own["fitted"], **measured[kind]["judged"]}
        for name, values in judged.items():
            cells = " | ".join(f"{values[metric]:.4g}" for metric in ("rmae", "mse", "r2", "pearson"))
            lines.append(f"| {name} | {cells} |")
        lines.append("")
    return "\n".join(lines)


def draw(points: dict[str, dict[str, LossPoints]], laws: dict[str, ScalingLaw], output: Path) -> None:
    """Figures 3 and 4 of the paper: losses by size, and observed beside predicted for the size held out."""
    figure, rows = plt.subplots(len(points), 2, figsize=(11, 4.2 * len(points)), layout="constrained", squeeze=False)
    for (kind, found), (curves, beside) in zip(points.items(), rows, strict=True):
        _draw_loss(found, laws[kind], kind, curves, beside)
    figure.savefig(output / "scaling_law.png", dpi=120)
    plt.close(figure)


def _draw_loss(found: dict[str, LossPoints], law: ScalingLaw, loss: str, curves: Axes, beside: Axes) -> None:
    steps = np.geomspace(ENDS[0], ENDS[-1], 50)
    for size, run in found.items():
        (marks,) = curves.plot(run.steps, run.losses, "o", markersize=4, label=size)
        millions = np.full(len(steps), run.parameters[0])
        curves.plot(steps, law.predict(millions, steps), "--", color=marks.get_color(), linewidth=0.9)
    curves.axvspan(FITTED_UP_TO, ENDS[-1] * 1.03, color="0.93", zorder=0)
    curves.set(xscale="log", yscale="log", xlabel="steps", ylabel=loss, title="measured, and the law (dashed)")
    curves.legend(title="parameters", frameon=False)
    largest = found[LARGEST]
    beside.plot(largest.steps, largest.losses, "o", markersize=4, label="measured")
    predicted = law.predict(np.full(len(steps), largest.parameters[0]), steps)
    beside.plot(steps, predicted, label="predicted from smaller sizes")
    beside.set(xscale="log", xlabel="steps", ylabel=loss, title=f"{LARGEST}, held out")
    beside.legend(frameon=False)
    for panel in (curves, beside):
        panel.set_xticks(ENDS, [f"{end:,}" for end in ENDS])
        panel.minorticks_off()
        panel.yaxis.set_major_locator(MaxNLocator(6))
        panel.yaxis.set_major_formatter(ScalarFormatter())


if __name__ == "__main__":
    app()
