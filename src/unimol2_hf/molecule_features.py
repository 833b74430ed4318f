"""The molecular graph as Uni-Mol2 reads it: per-atom and per-pair integer features of the heavy atoms.

Offsets and category lists are those that the published weights were trained with (arXiv 2406.14969 and its
reference implementation); the lists are those of the Open Graph Benchmark without the atomic number.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from .errors import (
    CoordinatesError,
    EmptyMoleculeError,
    MoleculeError,
    MoleculeTypeError,
    SanitizationError,
    SmilesParseError,
    UnsupportedAtomError,
)

IntArray = NDArray[np.int16]
FloatArray = NDArray[np.float32]

FEATURE_STRIDE = 16  # embedding rows reserved for each feature column
NUM_ATOM_COLUMNS = 8
NUM_BOND_COLUMNS = 3
SECOND_ATOM_OFFSET = 128  # pair types: rows of the second atom start here
UNREACHABLE_PATH = 509
DROPPED_PATH = 511
MAX_ATOMIC_NUMBER = 118

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

_BOND_ORDERS = {
    1.0: Chem.BondType.SINGLE,
    1.5: Chem.BondType.AROMATIC,
    2.0: Chem.BondType.DOUBLE,
    3.0: Chem.BondType.TRIPLE,
}


def parse_smiles(smiles: str) -> Chem.Mol:
    """Read a SMILES string into a sanitised RDKit molecule.

    Raises:
        MoleculeTypeError: `smiles` is not a string.
        EmptyMoleculeError: it is empty or blank.
        SmilesParseError: RDKit cannot read it.
        SanitizationError: it reads, but a valence or an aromatic ring is impossible.
    """
    if not isinstance(smiles, str):
        raise MoleculeTypeError(f"a SMILES string is needed, not {type(smiles).__name__}", smiles)
    text = smiles.strip()
    if not text:
        raise EmptyMoleculeError("the SMILES is empty; give at least one heavy atom", smiles)
    # RDKit would stop at the first blank and take the rest for a name: half a molecule, silently.
    _, _, rest = text.replace("\t", " ").replace("\n", " ").partition(" ")
    if rest and not rest.lstrip().startswith("|"):
        raise SmilesParseError(f"text after the SMILES ({rest.strip()[:40]!r}); give the SMILES alone", smiles)
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(text)
        if molecule is None:
            raise _diagnose_smiles(text)
    # Coordinates in a CXSMILES extension are a drawing, in no unit of length.
    molecule.RemoveAllConformers()
    return molecule


def _diagnose_smiles(smiles: str) -> MoleculeError:
    unsanitised = Chem.MolFromSmiles(smiles, sanitize=False)
    if unsanitised is None:
        reason = "RDKit cannot read it as SMILES; check brackets, ring closures and branches"
        return SmilesParseError(reason, smiles)
    problems = [problem.Message() for problem in Chem.DetectChemistryProblems(unsanitised)]
    detail = "; ".join(problems) or "sanitisation failed"
    return SanitizationError(f"chemically impossible: {detail}; check valences, charges and aromatic rings", smiles)


def remove_hydrogens(molecule: Chem.Mol) -> Chem.Mol:
    """The molecule's heavy atoms, see `heavy_atoms_of`, which raises the same errors."""
    return heavy_atoms_of(molecule)[0]


def heavy_atoms_of(molecule: Chem.Mol) -> tuple[Chem.Mol, list[Chem.Atom]]:
    """The molecule's heavy atoms, in order and sanitised, conformers kept; as a molecule and as a list.

    Every hydrogen goes, isotopes and ions too.

    Raises:
        MoleculeTypeError: it is a query.
        SanitizationError: RDKit cannot sanitise what remains.
        EmptyMoleculeError: nothing remains.
        UnsupportedAtomError: a wildcard atom remains.
    """
    if molecule.HasQuery():
        raise MoleculeTypeError("a query (SMARTS) is no molecule; read it with MolFromSmiles")
    if molecule.NeedsUpdatePropertyCache():
        molecule = Chem.Mol(molecule)
        molecule.UpdatePropertyCache(strict=False)
    with rdBase.BlockLogs():
        try:
            heavy = Chem.RemoveAllHs(molecule)
        except Chem.MolSanitizeException as error:
            raise SanitizationError(f"chemically impossible: {error}; correct valences or charges") from error
    atoms = atoms_of(heavy)
    check_atoms([atom.GetAtomicNum() for atom in atoms])
    return heavy, atoms


def atoms_of(molecule: Chem.Mol) -> list[Chem.Atom]:
    """Atoms in order. By index: RDKit's Python iterators cost more than what they iterate over."""
    return list(map(molecule.GetAtomWithIdx, range(molecule.GetNumAtoms())))


def check_atoms(atomic_numbers: Sequence[int]) -> None:
    """Raise `EmptyMoleculeError` without heavy atoms, `UnsupportedAtomError` for what is no element."""
    if not set(atomic_numbers) - {1}:
        raise EmptyMoleculeError("no heavy atom; Uni-Mol2 reads heavy atoms only and drops every hydrogen")
    if min(atomic_numbers) >= 1 and max(atomic_numbers) <= MAX_ATOMIC_NUMBER:
        return
    for position, number in enumerate(atomic_numbers):
        if not 1 <= number <= MAX_ATOMIC_NUMBER:
            reason = (
                f"atom {position} has atomic number {number}, which is no element (1..{MAX_ATOMIC_NUMBER}); "
                "replace wildcard and attachment-point atoms"
            )
            raise UnsupportedAtomError(reason)


def molecule_from_arrays(
    atomic_numbers: NDArray[np.int64],
    coordinates: NDArray[np.float64],
    bonds: Sequence[Sequence[Any]],
    formal_charges: Sequence[int] | None = None,
) -> Chem.Mol:
    """Build a sanitised RDKit molecule with one conformer from arrays.

    Where the arrays hold hydrogens they are taken as complete; where they hold none, RDKit fills valences with implicit
    hydrogens. Tetrahedral and double-bond stereo is read off 3D coordinates.

    Args:
        atomic_numbers: (n,).
        coordinates: (n, 3), angstrom.
        bonds: rows of (first atom, second atom, order) with order 1, 1.5 (aromatic), 2 or 3.
        formal_charges: (n,), in elementary charges; zero where not given.

    Raises:
        MoleculeError: a bond names an atom or an order that does not exist.
        SanitizationError: valences do not work out (a charge may be missing).
    """
    editable = Chem.RWMol()
    hydrogens_given = bool((atomic_numbers == 1).any())
    charges = checked_charges(formal_charges, len(atomic_numbers))
    for number, charge in zip(atomic_numbers, charges, strict=True):
        atom = Chem.Atom(int(number))
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(hydrogens_given)
        editable.AddAtom(atom)
    for bond in bonds:
        _add_bond(editable, bond)
    conformer = Chem.Conformer(len(atomic_numbers))
    conformer.SetPositions(np.ascontiguousarray(coordinates, dtype=np.float64))
    editable.AddConformer(conformer)
    return _sanitise_with_stereo(editable.GetMol())


def checked_charges(formal_charges: Sequence[int] | None, count: int) -> list[int]:
    """Formal charges as whole numbers, zeros where none are given; raises `MoleculeError` for anything else."""
    if formal_charges is None:
        return [0] * count
    if len(formal_charges) != count:
        raise MoleculeError(f"{len(formal_charges)} formal charges for {count} atoms; give one per atom")
    try:
        return [_whole_number(charge) for charge in formal_charges]
    except (TypeError, ValueError) as error:
        raise MoleculeError(f"formal charges must be whole numbers: {error}") from error


def _whole_number(value: Any) -> int:
    """An integer, also one that NumPy holds as a float because a neighbour (a bond order of 1.5) is one."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    return operator.index(value)


def _add_bond(molecule: Chem.RWMol, bond: Sequence[Any]) -> None:
    if len(bond) != 3:
        raise MoleculeError(f"bond {tuple(bond)} needs (first atom, second atom, order)")
    try:
        first, second = _whole_number(bond[0]), _whole_number(bond[1])
        order = _BOND_ORDERS[float(bond[2])]
    except (TypeError, ValueError, KeyError) as error:
        raise MoleculeError(
            f"bond {tuple(bond)} needs two atom indices and an order of 1, 1.5 (aromatic), 2 or 3"
        ) from error
    count = molecule.GetNumAtoms()
    if first == second or not (0 <= first < count and 0 <= second < count):
        raise MoleculeError(f"bond {tuple(bond)} does not join two of the atoms 0..{count - 1}")
    if molecule.GetBondBetweenAtoms(first, second) is not None:
        raise MoleculeError(f"atoms {first} and {second} are bonded twice; list each bond once")
    molecule.AddBond(first, second, order)
    if order == Chem.BondType.AROMATIC:
        for index in (first, second):
            molecule.GetAtomWithIdx(index).SetIsAromatic(True)
        molecule.GetBondBetweenAtoms(first, second).SetIsAromatic(True)


def _sanitise_with_stereo(molecule: Chem.Mol) -> Chem.Mol:
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(molecule)
        except Chem.MolSanitizeException as error:
            reason = f"chemically impossible: {error}; check bond orders, or give the atoms' formal charges"
            raise SanitizationError(reason) from error
        if is_three_dimensional(molecule.GetConformer().GetPositions()):
            Chem.AssignStereochemistryFrom3D(molecule)
    return molecule


def is_three_dimensional(coordinates: NDArray[np.floating[Any]]) -> bool:
    """Whether any atom leaves the xy plane; a planar molecule drawn in that plane counts as 2D."""
    return bool(np.abs(coordinates[:, 2] - coordinates[0, 2]).max() > 1e-6)


def center_coordinates(coordinates: NDArray[np.floating[Any]]) -> FloatArray:
    """Coordinates (n, 3) in angstrom as float32 with their mean at the origin.

    Raises:
        CoordinatesError: a value is not finite, or several atoms all lie in one point.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        center = np.add.reduce(coordinates) / len(coordinates)  # half the price of mean()
        centred: FloatArray = (coordinates - center).astype(np.float32)
    if not np.isfinite(centred).all():
        raise CoordinatesError("coordinates hold NaN, infinite or huge values; give finite positions in angstrom")
    if len(centred) > 1 and (coordinates == coordinates[0]).all():
        raise CoordinatesError("all atoms lie in one point; the conformer was never computed")
    return centred


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
