#!/usr/bin/env python3
"""Which molecules of the benchmarks unimol2-nano has seen in pretraining (their structure and targets, never a label).

    python recipes/nano/leaks.py --data DIR --library ~/unimol2-nano/COMMIT/library

Molecules are compared without stereo, as the library was made. Writes leaks.md.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import pyarrow.parquet as pq
import typer
from library import LABEL, keys_of

from unimol2_hf.data.shards import CONFORMERS

HERE = Path(__file__).parent
TABLES = {
    "ESOL": "esol.csv",
    "BBBP": "bbbp.csv",
    "Tox21": "tox21.csv",
    "Biogen ADME": "biogen_adme.csv",
    "COMPAS-1D": "compas_1d.csv",
    "QM8": "qm8.csv",
}
QM9 = "QM9, labelled in full"


def tables_of(data: Path) -> dict[str, list[str]]:
    """SMILES of each benchmark."""
    smiles = {name: pd.read_csv(data / file)["smiles"].tolist() for name, file in TABLES.items()}
    qm9 = pq.read_table(data / "qm9.parquet", columns=["smiles", LABEL])
    return smiles | {QM9: qm9.filter(qm9[LABEL].is_valid())["smiles"].to_pylist()}


def overlaps(tables: dict[str, list[str]], seen: set[str], workers: int) -> dict[str, tuple[int, int]]:
    """Of each table its distinct molecules, and how many of them were seen."""
    own = {name: {key for key in keys_of(smiles, workers) if key is not None} for name, smiles in tables.items()}
    return {name: (len(keys), len(keys & seen)) for name, keys in own.items()}


def main(
    data: Annotated[Path, typer.Option(help="folder with the public tables")],
    library: Annotated[Path, typer.Option(help="of library.py")],
    workers: Annotated[int, typer.Option(help="processes")] = 2,
    output: Annotated[Path, typer.Option()] = HERE / "leaks.md",
) -> None:
    """Count them."""
    table = pq.read_table(library / CONFORMERS, columns=["smiles", "error"])
    used = table.filter(table["error"].is_null())["smiles"].to_pylist()
    seen = {key for key in keys_of(used, workers) if key is not None}
    lines = [
        f"`python recipes/nano/leaks.py`: molecules of the benchmarks among the {len(seen):,} of the library,",
        "compared without stereo. Seen are their structures, descriptors and teacher's vectors, no label.",
        "",
        "| table | molecules | seen in pretraining | share |",
        "|---|---|---|---|",
    ]
    for name, (count, both) in overlaps(tables_of(data), seen, workers).items():
        lines.append(f"| {name} | {count:,} | {both:,} | {both / count:.1%} |")
    output.write_text("\n".join(lines) + "\n")
    print(output.read_text())


if __name__ == "__main__":
    typer.run(main)
