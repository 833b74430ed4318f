#!/usr/bin/env python3
"""How long a frozen head takes on 4,000 drug-like molecules whose conformers are cached, all included.

    python benchmarks/finetuning/frozen_time.py --data DIR [--repeats 3]

The molecules are Biogen's 3,521 and the first of ESOL; DIR as for run.py. Writes frozen_time.md.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rdkit import Chem
from run import HERE, processor

from unimol2_hf.descriptors import rdkit_descriptors

MOLECULES, BOUND = 4000, 60.0  # seconds


def write_table(data: Path, path: Path) -> None:
    smiles = [*pd.read_csv(data / "biogen_adme.csv")["smiles"], *pd.read_csv(data / "esol.csv")["smiles"]][:MOLECULES]
    labels = [rdkit_descriptors(Chem.MolFromSmiles(each), ["MolLogP"])[0] for each in smiles]
    pd.DataFrame({"smiles": smiles, "logp": labels}).to_csv(path, index=False)


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
    for number in range(repeats + 1):
        output = work_dir / f"model_{number}_{time.time_ns()}"
        command = ["finetune", str(table), "--targets", "logp", "--head", "frozen", "--output-dir", str(output)]
        start = time.monotonic()
        executable = str(Path(sys.executable).with_name("unimol2-hf"))
        subprocess.run([executable, *command], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.monotonic() - start)
        print(round(seconds[-1], 1), flush=True)
    told = ", ".join(f"{each:.0f}" for each in seconds[1:])
    (HERE / "frozen_time.md").write_text(
        "`python benchmarks/finetuning/frozen_time.py --data DIR`: `finetune --head frozen` on\n"
        f"{MOLECULES:,} molecules "
        f"(Biogen, ESOL), unimol2-nano, conformers cached; start, vectors, head, baselines, figures included: "
        f"{statistics.median(seconds[1:]):.0f} s\n(each: {told}; bound: {BOUND:.0f} s), {processor()}, two cores.\n"
    )


if __name__ == "__main__":
    typer.run(main)
