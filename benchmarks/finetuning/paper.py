#!/usr/bin/env python3
"""One command for each row of arXiv 2406.14969's tables 4 (QM9), 5 (COMPAS-1D) and 6 (Biogen ADME), tried on a share.

    python benchmarks/finetuning/paper.py --data DIR [--model unimol2-nano] [--share 0.01] [--epochs 2]

A row of these tables is a model: `--model org/unimol2-84m --share 1` is the row of 84M. Writes paper.md.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from finetune_command import HERE, finetune

QM9 = "homo,lumo,gap,alpha,cv,mu,r2,zpve"
COMPAS = "aea,aip,dispersion,dipole"
BIOGEN = "hlm_clint,mdr1_er,solubility,rlm_clint"
RANDOM = ["--split-method", "random"]
# Table of the paper, file, targets, options.
ROWS = [
    ("4: QM9, without graph features, DFT geometry", "qm9.parquet", QM9, ["--no-graph-features", *RANDOM]),
    ("4: QM9, with graph features, DFT geometry", "qm9.parquet", QM9, RANDOM),
    ("5: COMPAS-1D, without graph features", "compas_1d.csv", COMPAS, ["--no-graph-features", *RANDOM]),
    ("5: COMPAS-1D, with graph features", "compas_1d.csv", COMPAS, RANDOM),
    ("6: Biogen ADME", "biogen_adme.csv", BIOGEN, []),
]


def sample(source: Path, share: float, targets: list[str], output: Path) -> None:
    """A share of the labelled rows, drawn by seed 0."""
    is_parquet = source.suffix == ".parquet"
    table = pd.read_parquet(source) if is_parquet else pd.read_csv(source)
    table = table[table[targets].notna().any(axis=1)]
    drawn = table.sample(frac=share, random_state=0)
    drawn.to_parquet(output, index=False) if is_parquet else drawn.to_csv(output, index=False)


def main(
    data: Annotated[Path, typer.Option(help="folder with qm9.parquet, compas_1d.csv, biogen_adme.csv")],
    model: Annotated[str, typer.Option(help="the row")] = "unimol2-nano",
    share: Annotated[float, typer.Option(help="of the rows; 1 for the paper's")] = 0.01,
    epochs: Annotated[int, typer.Option(help="of each run; 0: the defaults")] = 0,
    work_dir: Annotated[Path, typer.Option()] = Path("runs/paper"),
) -> None:
    """Run all of them to the end, and write down what came out."""
    work_dir.mkdir(parents=True, exist_ok=True)
    lines = [
        f"`python benchmarks/finetuning/paper.py --model {model} --share {share:g} --epochs {epochs}`: each row of the",
        "paper's tables as one command, on a share of the data here. The figures say that it runs to the end, no more.",
        "",
        "| table | rows | failed | minutes | test MAE | predicting the mean |",
        "|---|---|---|---|---|---|",
    ]
    commands = []
    for number, (title, file, targets, options) in enumerate(ROWS):
        table = work_dir / file
        sample(data / file, share, targets.split(","), table)
        chosen = ["--model", model, "--head", "finetuned", *options]
        chosen += ["--epochs", str(epochs)] if epochs else []
        run = finetune(table, targets.split(","), work_dir / f"row_{number}", *chosen)
        told = ", ".join(f"{name} {metrics['mae']:.4g}" for name, metrics in run.report["test"].items())
        means = ", ".join(f"{metrics['baseline_mae']:.4g}" for metrics in run.report["test"].values())
        rows = run.report["rows"]
        lines.append(f"| {title} | {rows['all']:,} | {rows['failed']} | {run.minutes:.1f} | {told} | {means} |")
        commands.append(f"- `{run.command}`")
        (HERE / "paper.md").write_text("\n".join([*lines, "", "Commands:", "", *commands]) + "\n")


if __name__ == "__main__":
    typer.run(main)
