"""When two rows are the same molecule: by what the model reads of them, not by how they are written."""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
from rdkit import Chem

from ..molecules import (
    Molecule,
    atoms_of,
    checked_arrays,
    has_bonds,
    heavy_atoms_to_read,
    named_arrays,
)
from ..settings_unimol2 import Standardization
from ..worker_pool import map_in_order

UNREADABLE, ATOMS = "unreadable row ", "atoms "


def identities(molecules: Sequence[Molecule], standardize: Standardization = "none", num_workers: int = 0) -> list[str]:
    """The identity of each molecule: canonical SMILES of its heavy atoms, without isotopes and numbers of reactions.

    Atoms and coordinates without bonds are identified by these; what cannot be read is like no other row.

    Args:
        molecules: as the featurizer takes them.
        standardize: what is made of them first.
        num_workers: processes.
    """
    work = partial(_identity, standardize=standardize)
    found = (identity for _, identity in map_in_order(work, ((None, each) for each in molecules), num_workers))
    return [identity or f"{UNREADABLE}{row}" for row, identity in enumerate(found)]


def molecule_of_identity(identity: str) -> Chem.Mol | None:
    """The molecule that an identity describes; `None` where it describes no bonds."""
    return None if identity.startswith((UNREADABLE, ATOMS)) else Chem.MolFromSmiles(identity)


def first_rows(names: Iterable[str]) -> list[int]:
    """For each row the first one with its identity."""
    first: dict[str, int] = {}
    return [first.setdefault(name, row) for row, name in enumerate(names)]


def _identity(molecule: Molecule, standardize: Standardization) -> str:
    """Empty where the molecule cannot be read."""
    # A MoleculeError is a ValueError; RDKit's own are bare C++ errors. Featurising the molecule tells the reason.
    try:
        if not has_bonds(molecule):
            arrays = named_arrays(molecule)  # type: ignore[arg-type]
            numbers, positions = checked_arrays(arrays["atomic_numbers"], arrays["coordinates"])
            return ATOMS + repr((numbers.tolist(), np.round(positions - positions.mean(0), 3).tolist()))
        heavy = heavy_atoms_to_read(molecule, standardize)
        for atom in atoms_of(heavy):
            atom.SetIsotope(0)
        return str(Chem.MolToSmiles(heavy))
    except (RuntimeError, ValueError):
        return ""
