"""The molecular graph as Uni-Mol2 reads it: per-atom and per-pair integer features of the heavy atoms.

Offsets and category lists are those that the published weights were trained with (arXiv 2406.14969 and its
reference implementation); the lists are those of the Open Graph Benchmark without the atomic number.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from .settings_unimol2 import LONGEST_PATH

IntArray = NDArray[np.int16]

FEATURE_STRIDE = 16  # embedding rows reserved for each feature column
NUM_ATOM_COLUMNS = 8
NUM_BOND_COLUMNS = 3
SECOND_ATOM_OFFSET = 128  # pair types: rows of the second atom start here
UNREACHABLE_PATH = LONGEST_PATH
DROPPED_PATH = 511

_CHIRALITIES = (
    Chem.ChiralType.CHI_UNSPECIFIED,
    Chem.ChiralType.CHI_TETRAHEDRAL_CW,
    Chem.ChiralType.CHI_TETRAHEDRAL_CCW,
    Chem.ChiralType.CHI_TRIGONALBIPYRAMIDAL,
    Chem.ChiralType.CHI_OCTAHEDRAL,
    Chem.ChiralType.CHI_SQUAREPLANAR,
    Chem.ChiralType.CHI_OTHER,
)
_HYBRIDISATIONS = (
    Chem.HybridizationType.SP,
    Chem.HybridizationType.SP2,
    Chem.HybridizationType.SP3,
    Chem.HybridizationType.SP3D,
    Chem.HybridizationType.SP3D2,
)
_BOND_TYPES = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE, Chem.BondType.AROMATIC)
_BOND_STEREOS = (
    Chem.BondStereo.STEREONONE,
    Chem.BondStereo.STEREOZ,
    Chem.BondStereo.STEREOE,
    Chem.BondStereo.STEREOCIS,
    Chem.BondStereo.STEREOTRANS,
    Chem.BondStereo.STEREOANY,
)


def _category_index(categories: Sequence[Any], kind: Any, other: int) -> dict[Any, int]:
    """Index of each value of an RDKit enum in a list; `other` for what the list lacks."""
    return {**dict.fromkeys(kind.values.values(), other), **{name: index for index, name in enumerate(categories)}}


# The chirality list has no "misc": what it lacks (allene-like tags) is OTHER, where the reference crashes.
_CHIRALITY_INDEX = _category_index(_CHIRALITIES, Chem.ChiralType, len(_CHIRALITIES) - 1)
_HYBRIDISATION_INDEX = _category_index(_HYBRIDISATIONS, Chem.HybridizationType, len(_HYBRIDISATIONS))
_BOND_TYPE_INDEX = _category_index(_BOND_TYPES, Chem.BondType, len(_BOND_TYPES))
# The stereo list has no "misc" either; an atropisomer's tag is read as "some stereo, unknown which".
_BOND_STEREO_INDEX = _category_index(_BOND_STEREOS, Chem.BondStereo, len(_BOND_STEREOS) - 1)

_MAX_DEGREE, _MAX_CHARGE, _MAX_HYDROGENS, _MAX_RADICALS = 10, 5, 8, 4

_ATOM_OFFSETS = np.arange(NUM_ATOM_COLUMNS, dtype=np.int16) * FEATURE_STRIDE + 3
_BOND_OFFSETS = np.arange(NUM_BOND_COLUMNS, dtype=np.int16) * FEATURE_STRIDE + 4
_NO_BOND = 2


def graph_features(molecule: Chem.Mol, atoms: Sequence[Chem.Atom]) -> dict[str, IntArray]:
    """Integer features of a molecule of n atoms without hydrogens, both as `heavy_atoms_of` gives them.

    Returns:
        `atom_features` (n, 8), `degrees` (n,), `edge_features` (n, n, 3), `shortest_paths` (n, n) in bonds plus one,
        `pair_types` (n, n, 2); all int16, with the offsets of the published embedding tables.
    """
    edge_features, degrees = _edge_features(molecule)
    atom_features = _atom_features(atoms, degrees)
    paths = Chem.GetDistanceMatrix(molecule)
    shortest_paths = np.where(paths > UNREACHABLE_PATH, UNREACHABLE_PATH, paths).astype(np.int16) + np.int16(1)
    return {
        "atom_features": atom_features,
        "degrees": (degrees + 2).astype(np.int16),
        "edge_features": edge_features,
        "shortest_paths": shortest_paths,
        "pair_types": pair_types(atom_features),
    }


def dropped_graph_features(num_atoms: int) -> dict[str, IntArray]:
    """The features that stand for "no graph known", as pretraining uses them for half of its samples (section 3)."""
    atom_features = np.ones((num_atoms, NUM_ATOM_COLUMNS), dtype=np.int16)
    return {
        "atom_features": atom_features,
        "degrees": np.ones(num_atoms, dtype=np.int16),
        "edge_features": np.ones((num_atoms, num_atoms, NUM_BOND_COLUMNS), dtype=np.int16),
        "shortest_paths": np.full((num_atoms, num_atoms), DROPPED_PATH, dtype=np.int16),
        "pair_types": pair_types(atom_features),
    }


def pair_types(atom_features: IntArray) -> IntArray:
    """Ordered pair types (n, n, 2) from the first feature column.

    That column is the chirality, not the element: a quirk of the reference that the published weights depend on.
    """
    first_column = atom_features[:, 0]
    count = len(first_column)
    types = np.empty((count, count, 2), dtype=np.int16)
    types[..., 0] = first_column[:, None] + 1
    types[..., 1] = first_column[None, :] + 1 + SECOND_ATOM_OFFSET
    return types


def _atom_features(atoms: Sequence[Chem.Atom], degrees: NDArray[np.intp]) -> IntArray:
    columns = (
        [_CHIRALITY_INDEX[atom.GetChiralTag()] for atom in atoms],
        [atom.GetFormalCharge() for atom in atoms],
        [atom.GetTotalNumHs() for atom in atoms],
        [atom.GetNumRadicalElectrons() for atom in atoms],
        [_HYBRIDISATION_INDEX[atom.GetHybridization()] for atom in atoms],
        [atom.GetIsAromatic() for atom in atoms],
        [atom.IsInRing() for atom in atoms],
    )
    chirality, charge, hydrogens, radicals, hybridisation, aromatic, in_ring = np.array(columns, dtype=np.int16)
    features = np.empty((NUM_ATOM_COLUMNS, len(atoms)), dtype=np.int16)
    features[0] = chirality
    features[1] = np.minimum(degrees + hydrogens, _MAX_DEGREE + 1)
    features[2] = np.where(np.abs(charge) <= _MAX_CHARGE, charge + _MAX_CHARGE, 2 * _MAX_CHARGE + 1)
    features[3] = np.minimum(hydrogens, _MAX_HYDROGENS + 1)
    features[4] = np.minimum(radicals, _MAX_RADICALS + 1)
    features[5:] = hybridisation, aromatic, in_ring
    return features.T + _ATOM_OFFSETS


def _edge_features(molecule: Chem.Mol) -> tuple[IntArray, NDArray[np.intp]]:
    """Edge features (n, n, 3) and the number of neighbours (n,) of each atom."""
    count = molecule.GetNumAtoms()
    edges = np.full((count, count, NUM_BOND_COLUMNS), _NO_BOND, dtype=np.int16)
    bonds = list(map(molecule.GetBondWithIdx, range(molecule.GetNumBonds())))
    if not bonds:
        return edges, np.zeros(count, dtype=np.intp)
    ends = np.array([[bond.GetBeginAtomIdx() for bond in bonds], [bond.GetEndAtomIdx() for bond in bonds]])
    columns = (
        [_BOND_TYPE_INDEX[bond.GetBondType()] for bond in bonds],
        [_BOND_STEREO_INDEX[bond.GetStereo()] for bond in bonds],
        [bond.GetIsConjugated() for bond in bonds],
    )
    values = np.array(columns, dtype=np.int16).T + _BOND_OFFSETS
    first, second = ends
    edges[first, second] = values
    edges[second, first] = values
    return edges, np.bincount(ends.ravel(), minlength=count)
