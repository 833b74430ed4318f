"""The fixed scaffold splits of the benchmark data."""

from pathlib import Path

import pandas as pd
from rdkit import Chem


def with_split(data: Path, name: str, output: Path) -> None:
    """Join a dataset with its split by canonical SMILES; of duplicated molecules the first is kept."""
    table = pd.read_csv(data / f"{name}.csv", dtype=str)
    table["canonical_smiles"] = [Chem.CanonSmiles(smiles) for smiles in table["smiles"]]
    table = table.drop_duplicates("canonical_smiles")
    splits = pd.read_csv(data / "splits" / f"{name}.csv").rename(columns={"smiles": "canonical_smiles"})
    joined = table.merge(splits, on="canonical_smiles", how="left", validate="one_to_one")
    if joined["seed0"].isna().any():
        raise SystemExit(f"{name}: {joined['seed0'].isna().sum()} molecules have no split")
    joined.to_csv(output, index=False)
