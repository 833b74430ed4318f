"""QM9's DFT geometries as conformers in the order of their SMILES.

Bonds are determined from the geometry (RDKit's DetermineBonds, neutral); a molecule whose SMILES without stereo then
is not the table's is left out and counted.
"""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

Row = tuple[str, list[int], list[float]]
Geometry = tuple[str, list[float]]


def read_geometries(qm9: pa.Table, workers: int) -> tuple[list[Geometry | None], Counter[str]]:
    """Of every row canonical SMILES and flat heavy-atom coordinates, angstrom, or `None`; and how often which came."""
    rows = zip(*(qm9[name].to_pylist() for name in ("smiles", "atomic_numbers", "coordinates")), strict=True)
    with ProcessPoolExecutor(workers) as pool:
        results = list(pool.map(geometry_of, rows, chunksize=256))
    outcomes = Counter(result if isinstance(result, str) else "read" for result in results)
    return [None if isinstance(result, str) else result for result in results], outcomes


def geometry_of(row: Row) -> Geometry | str:
    """Canonical SMILES and flat heavy-atom coordinates in its order; or why there are none."""
    with rdBase.BlockLogs():
        return _read(row)


def _read(row: Row) -> Geometry | str:
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
