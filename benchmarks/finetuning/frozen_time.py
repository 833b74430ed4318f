#!/usr/bin/env python3
"""How long a frozen head takes on 4,000 drug-like molecules that another run has seen, all included.

    python benchmarks/finetuning/frozen_time.py --data DIR [--repeats 3]

The molecules are Biogen's 3,521 and the first of ESOL; DIR as for run.py. Conformers and the report's descriptors come
from the cache; the model's vectors do in every second run, as they would in a second run of a user's. Writes
frozen_time.md.
"""

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from finetune_command import HERE, finetune, processor
from rdkit import Chem

from unimol2_hf.data.cache_folder import cache_root
from unimol2_hf.descriptors import rdkit_descriptors

MOLECULES, BOUND = 4000, 60.0  # seconds


def write_table(data: Path, path: Path) -> None:
    smiles = [*pd.read_csv(data / "biogen_adme.csv")["smiles"], *pd.read_csv(data / "esol.csv")["smiles"]][:MOLECULES]
    labels = [rdkit_descriptors(Chem.MolFromSmiles(each), ["MolLogP"])[0] for each in smiles]
    pd.DataFrame({"smiles": smiles, "logp": labels}).to_csv(path, index=False)


def forget_vectors() -> None:
    """Of all models; descriptors and conformers stay."""
    for about in (cache_root("auto") or Path()).glob("*/vectors.json"):
        if "encoder" in json.loads(about.read_text()):
            shutil.rmtree(about.parent)


def told(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.0f} s ({', '.join(f'{each:.0f}' for each in seconds)})"


def main(
    data: Annotated[Path, typer.Option(help="folder with the CSV files")],
    repeats: Annotated[int, typer.Option(help="timed runs")] = 3,
    work_dir: Annotated[Path, typer.Option()] = Path("runs/frozen_time"),
) -> None:
    """Once to fill the cache, then timed."""
    work_dir.mkdir(parents=True, exist_ok=True)
    table = work_dir / "table.csv"
    write_table(data, table)
    seconds = []
    for number in range(2 * repeats + 1):
        if number % 2:
            forget_vectors()
        output = work_dir / f"model_{number}_{time.time_ns()}"
        seconds.append(60 * finetune(table, ["logp"], output, "--head", "frozen").minutes)
        print(round(seconds[-1], 1), flush=True)
    new, known = seconds[1::2], seconds[2::2]
    (HERE / "frozen_time.md").write_text(
        "`python benchmarks/finetuning/frozen_time.py --data DIR`: `finetune --head frozen` on\n"
        f"{MOLECULES:,} molecules (Biogen, ESOL), unimol2-nano; start, reading, head, baselines, figures included. Of "
        f"an\nearlier run's conformers and descriptors, vectors computed: {told(new)}; bound {BOUND:.0f} s.\n"
        f"Vectors from the cache too: {told(known)}. {processor()}, two cores.\n"
    )


if __name__ == "__main__":
    typer.run(main)
