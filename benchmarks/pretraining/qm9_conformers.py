#!/usr/bin/env python3
"""QM9's DFT geometries as conformers in SMILES order, which `unimol2-hf conformers build` reads.

    python benchmarks/pretraining/qm9_conformers.py --data DIR --output runs/pretraining/qm9.parquet

Bonds are determined from the geometry (RDKit's DetermineBonds, neutral); a molecule whose SMILES without stereo then
is not the table's is left out and counted.
"""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

Row = tuple[str, list[int], list[float]]


def conformer_of(row: Row) -> tuple[str, list[float]] | str:
    """Canonical SMILES and flat heavy-atom coordinates in its order; or why there are none."""
    with rdBase.BlockLogs():
        return _read(row)


def _read(row: Row) -> tuple[str, list[float]] | str:
    smiles, numbers, flat = row
    editable = Chem.RWMol()
    for number in numbers:
        editable.AddAtom(Chem.Atom(int(number)))
    conformer = Chem.Conformer(len(numbers))
    conformer.SetPositions(np.array(flat, dtype=np.float64).reshape(-1, 3))
    editable.AddConformer(conformer)
    try:
        rdDetermineBonds.DetermineBonds(editable, charge=0, allowChargedFragments=True)
        heavy = Chem.RemoveAllHs(editable.GetMol())
    except (ValueError, RuntimeError):
        return "bonds cannot be determined"
    Chem.AssignStereochemistryFrom3D(heavy)
    if Chem.MolToSmiles(heavy, isomericSmiles=False) != _without_stereo(smiles):
        return "another SMILES than the table's"
    made = Chem.MolToSmiles(heavy)
    order = list(heavy.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])
    positions = heavy.GetConformer().GetPositions()[order]
    return made, (positions - positions.mean(0)).ravel().tolist()


def _without_stereo(smiles: str) -> str:
    molecule = Chem.MolFromSmiles(smiles)
    return "" if molecule is None else str(Chem.MolToSmiles(molecule, isomericSmiles=False))


def main(
    data: Annotated[Path, typer.Option(help="folder with qm9.parquet")],
    output: Annotated[Path, typer.Option(help="Parquet file to write")],
    workers: Annotated[int, typer.Option()] = 2,
) -> None:
    """Write smiles and coordinates of every molecule that can be read."""
    table: dict[str, list[Any]] = pq.read_table(data / "qm9.parquet", columns=list(COLUMNS)).to_pydict()
    rows = list(zip(*(table[name] for name in COLUMNS), strict=True))
    outcomes: Counter[str] = Counter()
    found: list[tuple[str, list[float]]] = []
    with ProcessPoolExecutor(workers) as pool:
        for result in pool.map(conformer_of, rows, chunksize=256):
            outcomes["read" if isinstance(result, tuple) else result] += 1
            if isinstance(result, tuple):
                found.append(result)
    output.parent.mkdir(parents=True, exist_ok=True)
    coordinates = pa.array([flat for _, flat in found], type=pa.list_(pa.float32()))
    pq.write_table(pa.table({"smiles": [smiles for smiles, _ in found], "coordinates": coordinates}), output)
    print(dict(outcomes))


COLUMNS = ("smiles", "atomic_numbers", "coordinates")

if __name__ == "__main__":
    typer.run(main)
