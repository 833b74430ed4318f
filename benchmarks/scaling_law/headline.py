#!/usr/bin/env python3
"""Test error of frozen vectors against the size of the model that makes them: the paper's headline on our own models.

    python benchmarks/scaling_law/headline.py --data DIR [--runs runs/scaling] [--tables qm9,compas_1d,esol,biogen_adme]

Models are those of scaling_runs.py, each after its longest run, alike but for their width. Each table is featurised
once and read from every model's vectors by a kernel head, three splits: QM9 by scaffold, its labelled molecules (of
which none was in pretraining); COMPAS-1D at random; ESOL and Biogen by scaffold. Writes headline.json, .md and .png.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).parents[1] / "finetuning"))

import matplotlib as mpl
import numpy as np
import typer
from finetune_command import FOUR_OF_BIOGEN, processor
from heads import FloatArray, Runs, run_nano, run_tables, vectors_of
from paper_tables import SEEDS, UNITS, in_seed, settings_of, source_of
from rich.console import Console
from scaling_runs import ENDS, RUNS, SIZES, millions_of
from scipy.stats import linregress, t

mpl.use("Agg")

from matplotlib import pyplot as plt

from unimol2_hf.finetuning.prepare import prepare

HERE = Path(__file__).parent
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)  # told at the figure's axis
TARGETS = {
    "qm9": ["gap", "alpha"],
    "compas_1d": ["aea"],
    "esol": ["logSolubility"],
    "biogen_adme": FOUR_OF_BIOGEN,
}


def model_of(runs: Path, size: str) -> Path:
    """The pretrained model of a size."""
    return runs / size / f"decayed_{max(ENDS)}" / "model"


def run_table(name: str, data: Path, runs: Path, work_dir: Path) -> Runs:
    """A table read from the vectors of every size."""
    found: Runs = []
    prepared = None
    for size in SIZES:
        model, millions = model_of(runs, size), millions_of(size)
        settings = settings_of(name, TARGETS[name], data, 0, str(model), {})
        # All sizes have one featurizer.
        prepared = prepared or prepare(source_of(name, data, work_dir), settings, Console())
        vectors = vectors_of(prepared, settings)
        for seed in SEEDS:
            own = settings_of(name, TARGETS[name], data, seed, str(model), {})
            metrics = run_nano(in_seed(prepared, own), own, vectors)[0]
            kept = {target: {key: each[key] for key in ("mae", "baseline_mae")} for target, each in metrics.items()}
            found.append({"table": name, "arm": size, "millions": millions, "seed": seed, "test": kept})
            print(name, size, seed, {key: round(each["mae"], 5) for key, each in metrics.items()}, flush=True)
    return found


def curves(runs: Runs) -> dict[str, tuple[FloatArray, FloatArray, float]]:
    """Of each target the millions of parameters, test MAE (sizes, seeds), and that of predicting the mean."""
    found = {}
    for name in dict.fromkeys(run["table"] for run in runs):
        own = [run for run in runs if run["table"] == name]
        millions = np.array(sorted({run["millions"] for run in own}))
        for target in own[0]["test"]:
            errors = [[run["test"][target]["mae"] for run in own if run["millions"] == size] for size in millions]
            mean = float(np.mean([run["test"][target]["baseline_mae"] for run in own]))
            found[target] = (millions, np.array(errors), mean)
    return found


def slope(millions: FloatArray, errors: FloatArray) -> tuple[float, float, float]:
    """Exponent b of error = a M^b, by least squares on logarithms of the splits' means, and its 95 % interval."""
    fit = linregress(np.log(millions), np.log(errors.mean(axis=1)))
    half = float(t.ppf(0.975, len(millions) - 2) * fit.stderr)
    return float(fit.slope), float(fit.slope) - half, float(fit.slope) + half


def as_markdown(runs: Runs) -> str:
    found = curves(runs)
    sizes = next(iter(found.values()))[0]
    lines = [
        f"`python benchmarks/scaling_law/headline.py --data DIR` on {processor()}, two cores. Test MAE of a kernel",
        "head on frozen vectors, mean of three splits and their sample standard deviation, by millions of parameters",
        "without lookup tables; b of error = a M^b with its 95 % interval; last, the change from the second largest to",
        "the largest size, and in how many of the three splits it is a gain.",
        "",
        f"| | unit | the mean | {' | '.join(f'{size:.2f}' for size in sizes)} | b | last step | gains |",
        "|---|---|---|" + "---|" * (len(sizes) + 3),
    ]
    for target, (millions, errors, mean) in found.items():
        cells = [f"{row.mean():.4g} ({row.std(ddof=1):.2g})" for row in errors]
        exponent, low, high = slope(millions, errors)
        step = errors[-1].mean() / errors[-2].mean() - 1
        gains = int((errors[-1] < errors[-2]).sum())
        told = [UNITS.get(target, "log10"), f"{mean:.4g}", *cells, f"{exponent:.3f} ({low:.3f} to {high:.3f})"]
        lines.append(f"| {target} | {' | '.join([*told, f'{step:+.1%}', f'{gains} of {errors.shape[1]}'])} |")
    return "\n".join(lines) + "\n"


def draw(runs: Runs, path: Path) -> None:
    """Errors by size, each in shares of predicting the mean."""
    figure, axes = plt.subplots(figsize=(6.5, 4.4), layout="constrained")
    for target, (millions, errors, mean) in curves(runs).items():
        shares = errors / mean
        axes.errorbar(millions, shares.mean(axis=1), shares.std(axis=1, ddof=1), marker="o", markersize=4, label=target)
    axes.set(
        xscale="log", yscale="log", xlabel="millions of parameters, without lookup tables",
        ylabel="test MAE over that of predicting the mean", title="frozen vectors, kernel head, three splits",
    )  # fmt: skip
    axes.set_xticks(millions, [f"{size:.2f}" for size in millions])
    axes.set_yticks(SHARES, [f"{share:g}" for share in SHARES])
    axes.minorticks_off()
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(
    data: Annotated[Path, typer.Option(help="folder with qm9.parquet, the CSV files and splits/")],
    runs: Annotated[Path, typer.Option(help="of scaling_runs.py")] = RUNS,
    tables: Annotated[str, typer.Option(help="comma-separated")] = ",".join(TARGETS),
    work_dir: Annotated[Path, typer.Option()] = Path("runs/paper_tables"),
) -> None:
    """Run each table in turn."""
    run_tables(HERE / "headline.json", tables, lambda name: run_table(name, data, runs, work_dir), as_markdown)
    draw(json.loads((HERE / "headline.json").read_text()), HERE / "headline.png")


if __name__ == "__main__":
    typer.run(main)
