"""Molecules in: SMILES, RDKit molecules or plain arrays to a sanitised RDKit molecule of heavy atoms."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds
from rdkit.Chem.MolStandardize import rdMolStandardize

from .errors import (
    CoordinatesError,
    EmptyMoleculeError,
    MoleculeError,
    MoleculeTooLargeError,
    MoleculeTypeError,
    SanitizationError,
    SmilesParseError,
    UnsupportedAtomError,
)
from .settings_unimol2 import LARGEST_ATOMIC_NUMBER, Standardization

Molecule = str | Chem.Mol | tuple[Any, ...] | Mapping[str, Any] | MoleculeError

LONGEST_SMILES = 20_000  # RDKit takes gigabytes for a million characters
_BOND_TYPE_IN_FILE = "_MolFileBondType"
_ARRAY_KEYS = ("atomic_numbers", "coordinates", "bonds", "formal_charges")


def is_single_molecule(molecules: object) -> bool:
    """Whether an input is one molecule rather than many; a tuple is one if it starts with an array of numbers."""
    if isinstance(molecules, tuple):
        return len(molecules) > 0 and _holds_numbers(molecules[0])
    if isinstance(molecules, str | bytes | Chem.Mol | Mapping):
        return True
    return not isinstance(molecules, Iterable) and not hasattr(molecules, "__getitem__")


def sequence_of_molecules(molecules: Any) -> Any:
    """What holds many molecules as what can be iterated over, Arrow columns as their values.

    Raises:
        MoleculeTypeError: a table, of which iteration gives column names or rows.
    """
    if hasattr(molecules, "to_pylist") and not hasattr(molecules, "column_names"):
        return molecules.to_pylist()
    shape = getattr(molecules, "shape", ())
    is_table = hasattr(molecules, "columns") or isinstance(getattr(molecules, "column_names", None), list)
    if is_table or (isinstance(shape, tuple) and len(shape) > 1):
        what = type(molecules).__name__
        raise MoleculeTypeError(f"a {what} of rows and columns is no sequence of molecules; give one column")
    return molecules


def _holds_numbers(values: object) -> bool:
    if isinstance(values, np.ndarray):
        return True
    return isinstance(values, Sequence) and not isinstance(values, str) and all(isinstance(v, Number) for v in values)


def has_bonds(molecule: Molecule) -> bool:
    """Whether an input tells its bonds: atoms and coordinates alone do not."""
    if isinstance(molecule, tuple) or (isinstance(molecule, Mapping) and "smiles" not in molecule):
        return named_arrays(molecule).get("bonds") is not None
    return True


def describe(molecule: object) -> object:
    """What to show of a molecule in an error message; never an object that cannot cross process borders."""
    if isinstance(molecule, Chem.Mol):
        try:
            return str(Chem.MolToSmiles(molecule))
        except (RuntimeError, ValueError):
            return "an RDKit molecule"
    return molecule if isinstance(molecule, str | int | float | type(None)) else type(molecule).__name__


def molecule_of(molecule: Molecule) -> Chem.Mol:
    """The RDKit molecule of an input with bonds, with the conformers that it brings.

    Raises:
        MoleculeError: it cannot be read, or has no bonds.
    """
    if isinstance(molecule, str):
        return parse_smiles(molecule)
    if isinstance(molecule, Chem.Mol):
        return molecule
    if isinstance(molecule, MoleculeError):
        raise molecule
    if isinstance(molecule, Mapping) and "smiles" in molecule:
        return _with_coordinates(molecule)
    raise MoleculeTypeError(
        f"a molecule is a SMILES string, an RDKit molecule or (atomic numbers, coordinates[, bonds]), "
        f"not {type(molecule).__name__}",
        describe(molecule),
    )


def _with_coordinates(molecule: Mapping[str, Any]) -> Chem.Mol:
    """The heavy atoms of a SMILES with the coordinates (n, 3) or (conformers, n, 3) that come with it.

    With `atomic_numbers` the coordinates are those of a geometry, hydrogens included, in an order of its own.
    """
    unknown = sorted(set(map(str, molecule)) - {"smiles", "coordinates", "atomic_numbers"})
    if unknown or "coordinates" not in molecule:
        raise MoleculeTypeError(f"a SMILES with coordinates has smiles and coordinates, not {', '.join(molecule)}")
    heavy = remove_hydrogens(parse_smiles(molecule["smiles"]))
    heavy.RemoveAllConformers()
    if molecule.get("atomic_numbers") is not None:
        return _with_geometry(heavy, *checked_arrays(molecule["atomic_numbers"], molecule["coordinates"]))
    try:
        positions = np.asarray(molecule["coordinates"], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CoordinatesError(f"coordinates must be a plain number array: {error}") from error
    count = heavy.GetNumAtoms()
    if positions.ndim not in (2, 3) or positions.shape[-2:] != (count, 3) or not positions.size:
        raise CoordinatesError(
            f"{count} heavy atoms need coordinates of shape ({count}, 3) or (conformers, {count}, 3), in the order of "
            f"the SMILES, not {positions.shape}"
        )
    for each in positions.reshape(-1, count, 3):
        _add_conformer(heavy, each)
    return heavy


def _add_conformer(molecule: Chem.Mol, positions: NDArray[np.float64]) -> None:
    conformer = Chem.Conformer(molecule.GetNumAtoms())
    conformer.SetPositions(np.ascontiguousarray(positions))
    molecule.AddConformer(conformer, assignId=True)


def _with_geometry(heavy: Chem.Mol, numbers: NDArray[np.int64], positions: NDArray[np.float64]) -> Chem.Mol:
    """Heavy atoms of a SMILES with the positions of a geometry that has the same skeleton; stereo is the geometry's."""
    found = _connected(numbers, positions)
    if (numbers == 1).any():
        of_geometry = [sum(each.GetAtomicNum() == 1 for each in atom.GetNeighbors()) for atom in atoms_of(found)]
        of_smiles = [atom.GetTotalNumHs() for atom in atoms_of(heavy)]
        match = _skeleton(found, of_geometry).GetSubstructMatch(_skeleton(heavy, of_smiles))
    else:
        match = _skeleton(found, None).GetSubstructMatch(_skeleton(heavy, None))
    if len(match) != heavy.GetNumAtoms() or len(match) != int((numbers != 1).sum()):
        raise CoordinatesError("the geometry's bonds are not those of the SMILES; correct one, or leave one out")
    _add_conformer(heavy, positions[numbers != 1][list(match)])
    Chem.AssignStereochemistryFrom3D(heavy)
    return heavy


def _connected(numbers: NDArray[np.int64], positions: NDArray[np.float64]) -> Chem.Mol:
    """Atoms joined where their distance says so."""
    editable = Chem.RWMol()
    for number in numbers:
        editable.AddAtom(Chem.Atom(int(number)))
    _add_conformer(editable, positions)
    try:
        with rdBase.BlockLogs():
            rdDetermineBonds.DetermineConnectivity(editable)
    except (RuntimeError, ValueError) as error:
        raise CoordinatesError(f"bonds cannot be read from the geometry: {error}") from error
    return editable.GetMol()


def _skeleton(molecule: Chem.Mol, hydrogens: Sequence[int] | None) -> Chem.Mol:
    """Heavy atoms joined by single bonds, marked, in their isotope, with their hydrogens."""
    editable = Chem.RWMol()
    place: dict[int, int] = {}
    for index, atom in enumerate(atoms_of(molecule)):
        if atom.GetAtomicNum() == 1:
            continue
        bare = Chem.Atom(atom.GetAtomicNum())
        bare.SetIsotope(0 if hydrogens is None else 1 + hydrogens[index])
        place[index] = editable.AddAtom(bare)
    for bond in map(molecule.GetBondWithIdx, range(molecule.GetNumBonds())):
        first, second = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if first in place and second in place:
            editable.AddBond(place[first], place[second], Chem.BondType.SINGLE)
    return editable.GetMol()


def named_arrays(molecule: Mapping[str, Any] | tuple[Any, ...]) -> dict[str, Any]:
    if isinstance(molecule, tuple):
        molecule = dict(zip(_ARRAY_KEYS, molecule, strict=False)) if 2 <= len(molecule) <= 4 else {}
    unknown = sorted(set(map(str, molecule)) - set(_ARRAY_KEYS))
    if unknown or not {"atomic_numbers", "coordinates"} <= set(molecule):
        raise MoleculeTypeError(
            "a molecule given as arrays needs atomic_numbers and coordinates, and may have bonds and formal_charges"
            + (f"; unknown: {', '.join(unknown)}" if unknown else "")
        )
    return dict(molecule)


def checked_arrays(atomic_numbers: Any, coordinates: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    try:
        numbers = np.asarray(atomic_numbers)
        positions = np.asarray(coordinates, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CoordinatesError(f"atomic numbers and coordinates must be plain number arrays: {error}") from error
    if numbers.ndim != 1 or (not np.issubdtype(numbers.dtype, np.integer) and numbers.size):
        raise MoleculeTypeError(
            f"atomic numbers must be whole numbers of shape (n,), not {numbers.dtype} {numbers.shape}"
        )
    if positions.shape != (len(numbers), 3) and (numbers.size or positions.size):
        raise CoordinatesError(
            f"{len(numbers)} atoms need coordinates of shape ({len(numbers)}, 3), not {positions.shape}"
        )
    check_atoms(numbers.tolist())
    return numbers.astype(np.int64), positions


FloatArray = NDArray[np.float32]


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
        MoleculeTooLargeError: it has more than 20,000 characters.
        SmilesParseError: RDKit cannot read it.
        SanitizationError: it reads, but a valence or an aromatic ring is impossible.
    """
    if not isinstance(smiles, str):
        raise MoleculeTypeError(f"a SMILES string is needed, not {type(smiles).__name__}", smiles)
    if len(smiles) > LONGEST_SMILES:
        raise MoleculeTooLargeError(f"a SMILES of {len(smiles):,} characters; at most {LONGEST_SMILES:,} are read")
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
        raise MoleculeTypeError(_what_is_queried(molecule))
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
    for atom in atoms:
        # Numbers of a reaction, which would decide the canonical order.
        atom.SetAtomMapNum(0)
    return heavy, atoms


def heavy_atoms_to_read(molecule: Molecule, how: Standardization) -> Chem.Mol:
    """What the featurizer reads of an input with bonds: its heavy atoms, standardised.

    Raises:
        MoleculeError: see `molecule_of`, `heavy_atoms_of` and `standardize_heavy_atoms`.
    """
    return standardize_heavy_atoms(remove_hydrogens(molecule_of(molecule)), how)


def standardize_heavy_atoms(heavy: Chem.Mol, how: Standardization) -> Chem.Mol:
    """Heavy atoms without what a salt form adds, conformers kept.

    Args:
        heavy: see `heavy_atoms_of`.
        how: "none"; "largest-fragment" of several; "parent": normalised, largest fragment, charges neutralised where
            that is possible (RDKit's rdMolStandardize).

    Raises:
        SanitizationError: RDKit cannot standardise the molecule.
    """
    if how == "none" or (how == "largest-fragment" and len(Chem.GetMolFrags(heavy)) == 1):
        return heavy
    try:
        with rdBase.BlockLogs():
            chosen = _STANDARDIZERS[how](heavy)
    except (RuntimeError, ValueError) as error:
        raise SanitizationError(
            f"RDKit finds no {how} ({error}); correct the molecule, or leave it as it is"
        ) from error
    return heavy_atoms_of(chosen)[0]


_STANDARDIZERS: Mapping[str, Callable[[Chem.Mol], Chem.Mol]] = {
    "largest-fragment": rdMolStandardize.LargestFragmentChooser(preferOrganic=True).choose,
    "parent": rdMolStandardize.ChargeParent,
}


def canonical_form(heavy: Chem.Mol) -> tuple[Chem.Mol, NDArray[np.intp]] | None:
    """Heavy atoms as RDKit reads them from their canonical SMILES, and each of these atoms' index in `heavy`.

    The same for every way of writing a molecule, its stereo tags included, which depend on the order of the atoms.
    `None` where the SMILES does not give the molecule back.
    """
    smiles, order = canonical_order(heavy)
    with rdBase.BlockLogs():
        read = Chem.MolFromSmiles(smiles)
    if read is None:
        return None
    numbers = [atom.GetAtomicNum() for atom in atoms_of(heavy)]
    if [atom.GetAtomicNum() for atom in atoms_of(read)] != [numbers[index] for index in order]:
        return None
    return read, order


def canonical_order(heavy: Chem.Mol) -> tuple[str, NDArray[np.intp]]:
    """Canonical SMILES of heavy atoms, and the atoms' indices in its order."""
    smiles = str(Chem.MolToSmiles(heavy))
    return smiles, np.array(heavy.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"], dtype=np.intp)


def _what_is_queried(molecule: Chem.Mol) -> str:
    """Which atom or bond is none, as a file or a SMARTS pattern may have them."""
    for number, bond in enumerate(map(molecule.GetBondWithIdx, range(molecule.GetNumBonds())), start=1):
        if bond.HasProp(_BOND_TYPE_IN_FILE) and bond.HasQuery():
            kind = bond.GetIntProp(_BOND_TYPE_IN_FILE)
            return f"bond {number} has type {kind}, a query; give it type 1, 2, 3 or 4 in the file"
    for atom in atoms_of(molecule):
        if atom.HasQuery() and atom.GetAtomicNum() == 0:
            return f"atom {atom.GetIdx() + 1} is {atom.GetSmarts()}, a query; give it an element in the file"
    return "a query (SMARTS) is no molecule; read it with MolFromSmiles"


def atoms_of(molecule: Chem.Mol) -> list[Chem.Atom]:
    """Atoms in order. By index: RDKit's Python iterators cost more than what they iterate over."""
    return list(map(molecule.GetAtomWithIdx, range(molecule.GetNumAtoms())))


def check_atoms(atomic_numbers: Sequence[int]) -> None:
    """Raise `EmptyMoleculeError` without heavy atoms, `UnsupportedAtomError` for what is no element."""
    if not set(atomic_numbers) - {1}:
        raise EmptyMoleculeError("no heavy atom; Uni-Mol2 reads heavy atoms only and drops every hydrogen")
    if min(atomic_numbers) >= 1 and max(atomic_numbers) <= LARGEST_ATOMIC_NUMBER:
        return
    for position, number in enumerate(atomic_numbers):
        if not 1 <= number <= LARGEST_ATOMIC_NUMBER:
            reason = (
                f"atom {position} has atomic number {number}, which is no element (1..{LARGEST_ATOMIC_NUMBER}); "
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
