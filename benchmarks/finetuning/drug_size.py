#!/usr/bin/env python3
"""How long the defaults take for 1,500 molecules of 34 heavy atoms, conformers included (bound: 8 minutes, two cores).

    python benchmarks/finetuning/drug_size.py --data DIR

The first such molecules of smiles_pretrain.smi.gz, RDKit's logP as label; nothing comes from the cache of conformers.
"""

import gzip
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from finetune_command import HERE, finetune, processor
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

MOLECULES, HEAVY_ATOMS = 1500, 34


def write_table(source: Path, output: Path) -> None:
    found = []
    with gzip.open(source, "rt") as lines:
        for line in lines:
            smiles = line.split()[0]
            molecule = Chem.MolFromSmiles(smiles)
            if molecule is not None and molecule.GetNumHeavyAtoms() == HEAVY_ATOMS:
                found.append((smiles, rdMolDescriptors.CalcCrippenDescriptors(molecule)[0]))
            if len(found) == MOLECULES:
                break
    pd.DataFrame(found, columns=["smiles", "logp"]).to_csv(output, index=False)


def main(
    data: Annotated[Path, typer.Option(help="folder with smiles_pretrain.smi.gz")],
    work_dir: Annotated[Path, typer.Option()] = Path("runs/drug_size"),
) -> None:
    """Fine-tune once by the defaults, and write down the time."""
    work_dir.mkdir(parents=True, exist_ok=True)
    write_table(data / "smiles_pretrain.smi.gz", work_dir / "table.csv")
    options = ["--head", "finetuned", "--conformer-cache", "none"]
    minutes = finetune(work_dir / "table.csv", ["logp"], work_dir / "model", *options).minutes
    (HERE / "drug_size.md").write_text(
        f"`python benchmarks/finetuning/drug_size.py`: {MOLECULES:,} molecules of {HEAVY_ATOMS} heavy atoms, "
        "unimol2-nano, the defaults,\nconformers, evaluation and baselines included: "
        f"{minutes:.1f} minutes (bound: 8), {processor()}.\n"
    )


if __name__ == "__main__":
    typer.run(main)
