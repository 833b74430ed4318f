#!/usr/bin/env python3
"""How much of its variance each block of the teacher's components holds: from its whole vectors of other molecules.

python recipes/nano/spectrum.py --data DIR
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from library import TEACHER_BLOCKS

TABLES = ("esol", "biogen_adme", "bbbp", "tox21")


def main(data: Annotated[Path, typer.Option(help="folder with the public tables")]) -> None:
    """Print each block's share."""
    vectors = [np.load(data / "peers" / f"minimol_{table}.npz")["vectors"].astype(np.float32) for table in TABLES]
    variances = np.linalg.eigvalsh(np.cov(np.concatenate(vectors).T))[::-1]
    for name, first, end in TEACHER_BLOCKS:
        print(f"{name}: {variances[first:end].sum() / variances.sum():.3f}")


if __name__ == "__main__":
    typer.run(main)
