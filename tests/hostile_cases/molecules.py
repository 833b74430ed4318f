"""The hostile table, molecules: refused by a named error, or odd but usable, and what their record must say."""

from typing import Any

import numpy as np
from rdkit import Chem

from unimol2_hf import (
    CoordinatesError,
    EmptyMoleculeError,
    MoleculeError,
    MoleculeTooLargeError,
    MoleculeTypeError,
    SanitizationError,
    SmilesParseError,
    UnsupportedAtomError,
)

THREE = np.array([[0.0, 0, 0], [1.5, 0, 0], [2.0, 1.4, 0.3]])


def with_value(value: float) -> Any:
    changed = THREE.copy()
    changed[1, 1] = value
    return changed


def molecule_with_positions(smiles: str, positions: Any) -> Chem.Mol:
    molecule = Chem.MolFromSmiles(smiles)
    conformer = Chem.Conformer(molecule.GetNumAtoms())
    for index, position in enumerate(positions):
        conformer.SetAtomPosition(index, [float(value) for value in position])
    molecule.AddConformer(conformer)
    return molecule


REFUSED: list[tuple[str, Any, type[MoleculeError]]] = [
    # Nothing there.
    ("empty", "", EmptyMoleculeError),
    ("blank", "   ", EmptyMoleculeError),
    ("tab and newline", "\t\n", EmptyMoleculeError),
    ("hydrogen molecule", "[H][H]", EmptyMoleculeError),
    ("proton", "[H+]", EmptyMoleculeError),
    ("hydride", "[H-]", EmptyMoleculeError),
    ("deuterium", "[2H][2H]", EmptyMoleculeError),
    ("two protons", "[H+].[H+]", EmptyMoleculeError),
    ("empty RDKit molecule", Chem.Mol(), EmptyMoleculeError),
    ("no atoms in arrays", ([], np.zeros((0, 3))), EmptyMoleculeError),
    ("only hydrogens in arrays", ([1, 1], np.eye(3)[:2]), EmptyMoleculeError),
    # Not a molecule.
    ("None", None, MoleculeTypeError),
    ("NaN of a missing cell", float("nan"), MoleculeTypeError),
    ("number", 42, MoleculeTypeError),
    ("bytes", b"CCO", MoleculeTypeError),
    ("boolean", True, MoleculeTypeError),
    ("list inside a list", ["CCO"], MoleculeTypeError),
    ("set", {"CCO"}, MoleculeTypeError),
    ("tuple of one", ([6],), MoleculeTypeError),
    ("tuple of five", ([6], THREE[:1], [], [0], 0), MoleculeTypeError),
    ("empty tuple", (), MoleculeTypeError),
    ("mapping without coordinates", {"atomic_numbers": [6]}, MoleculeTypeError),
    ("mapping with an unknown name", {"atomic_numbers": [6], "coordinates": THREE[:1], "mass": 12}, MoleculeTypeError),
    ("fractional atomic numbers", ([6.5, 6, 8], THREE), MoleculeTypeError),
    ("element symbols", (["C", "C", "O"], THREE), MoleculeTypeError),
    ("nested atomic numbers", ([[6, 6, 8]], THREE), MoleculeTypeError),
    # Not SMILES.
    ("unclosed ring", "C1CC", SmilesParseError),
    ("unclosed bracket", "[CH3", SmilesParseError),
    ("unclosed branch", "CC(C", SmilesParseError),
    ("closing branch alone", "CC)C", SmilesParseError),
    ("unknown element", "[Xx]", SmilesParseError),
    ("plain text", "aspirin", SmilesParseError),
    ("Chinese", "阿司匹林", SmilesParseError),
    ("emoji", "💊", SmilesParseError),
    ("InChI", "InChI=1S/CH4/h1H4", SmilesParseError),
    ("reaction", "CC>>CO", SmilesParseError),
    ("double dot bond", "C==C", SmilesParseError),
    ("null byte", "C\0C", SmilesParseError),
    ("formula injection", "=1+1", SmilesParseError),
    ("long rubbish", "?" * 20_000, SmilesParseError),
    ("very long rubbish", "?" * 100_000, MoleculeTooLargeError),
    ("deep branches never closed", "C(" * 10_000, SmilesParseError),
    ("name behind the SMILES", "CCO ethanol", SmilesParseError),
    ("tokenised SMILES", "C C ( = O ) O", SmilesParseError),
    ("two lines", "CC\nO", SmilesParseError),
    ("query", Chem.MolFromSmarts("[#6,#7]~O"), MoleculeTypeError),
    # Impossible chemistry.
    ("five bonds on carbon", "C(C)(C)(C)(C)C", SanitizationError),
    ("four bonds on oxygen", "CO(C)(C)C", SanitizationError),
    ("aromatic ring that cannot be", "c1cccc1", SanitizationError),
    ("aromatic nitrogen without hydrogen", "c1ccnc1", SanitizationError),
    ("lower-case chain", "cco", SanitizationError),
    ("two bonds on fluorine", "CFC", SanitizationError),
    ("impossible bonds in arrays", ([6, 9, 9], THREE, [(0, 1, 3), (1, 2, 3)]), SanitizationError),
    # No element.
    ("wildcard", "*", UnsupportedAtomError),
    ("attachment point", "c1ccccc1[*:1]", UnsupportedAtomError),
    ("polymer ends", "*CC*", UnsupportedAtomError),
    ("R group", "[R1]CC", SmilesParseError),
    ("wildcard in an RDKit molecule", Chem.MolFromSmiles("*C"), UnsupportedAtomError),
    ("atomic number zero", ([6, 0, 8], THREE), UnsupportedAtomError),
    ("negative atomic number", ([6, -1, 8], THREE), UnsupportedAtomError),
    ("atomic number 119", ([6, 119, 8], THREE), UnsupportedAtomError),
    ("the mask token", ([6, 127, 8], THREE), UnsupportedAtomError),
    # Coordinates.
    ("NaN coordinate", ([6, 6, 8], with_value(np.nan)), CoordinatesError),
    ("infinite coordinate", ([6, 6, 8], with_value(np.inf)), CoordinatesError),
    ("too few coordinates", ([6, 6, 8], THREE[:2]), CoordinatesError),
    ("too many coordinates", ([6, 6], THREE), CoordinatesError),
    ("flat list of coordinates", ([6, 6, 8], THREE.ravel()), CoordinatesError),
    ("two columns", ([6, 6, 8], THREE[:, :2]), CoordinatesError),
    ("text coordinates", ([6, 6, 8], [["a", "b", "c"]] * 3), CoordinatesError),
    ("ragged coordinates", ([6, 6, 8], [[0, 0, 0], [1, 1], [2]]), CoordinatesError),
    ("all in one point", ([6, 6, 8], np.zeros((3, 3))), CoordinatesError),
    ("no coordinates", ([6, 6, 8], None), CoordinatesError),
    ("huge coordinate", ([6, 6, 8], with_value(1e39)), CoordinatesError),
    ("conformer of zeros", molecule_with_positions("CCO", np.zeros((3, 3))), CoordinatesError),
    ("conformer with NaN", molecule_with_positions("CCO", with_value(np.nan)), CoordinatesError),
    # Bonds.
    ("bond to a missing atom", ([6, 6, 8], THREE, [(0, 3, 1)]), MoleculeError),
    ("bond to itself", ([6, 6, 8], THREE, [(1, 1, 1)]), MoleculeError),
    ("bond twice", ([6, 6, 8], THREE, [(0, 1, 1), (1, 0, 1)]), MoleculeError),
    ("bond without order", ([6, 6, 8], THREE, [(0, 1)]), MoleculeError),
    ("bond of order five", ([6, 6, 8], THREE, [(0, 1, 5)]), MoleculeError),
    ("bond of unknown name", ([6, 6, 8], THREE, [(0, 1, "double")]), MoleculeError),
    ("charges for some atoms", ([6, 6, 8], THREE, [(0, 1, 1)], [0, 0]), MoleculeError),
    (
        "charges without bonds for some atoms",
        {"atomic_numbers": [6], "coordinates": THREE[:1], "formal_charges": [0, 1]},
        MoleculeError,
    ),
    ("fractional charge", ([6, 6, 8], THREE, [(0, 1, 1)], [0, 0.9, 0]), MoleculeError),
    ("function", len, MoleculeTypeError),
    # Size.
    ("chain of 5,000 atoms", "C" * 5000, MoleculeTooLargeError),
    ("arrays of 300 atoms", ([6] * 300, np.random.default_rng(0).normal(size=(300, 3))), MoleculeTooLargeError),
]

# Odd but usable: a row with finite numbers, and what its record must say.
ACCEPTED: list[tuple[str, Any, dict[str, Any]]] = [
    ("lone ion", "[Na+]", {"force_field": "MMFF94"}),
    ("lone metal ion", "[Fe+2]", {}),
    ("salt of lone ions", "[Na+].[Cl-]", {"method": "2d"}),
    ("noble gas", "[He]", {}),
    ("methane", "C", {}),
    ("water", "O", {}),
    ("allene-like chirality", "CC=[C@]=CF", {}),
    ("trigonal bipyramid", "F[P@TB1](Cl)(Br)(I)N", {}),
    ("octahedron", "F[Co@OH1](Cl)(Br)(I)(N)O", {}),
    ("square planar", "F[Pt@SP1](Cl)(Br)N", {}),
    ("unembeddable cage", "[C@]12(F)[C@]3(F)[C@@]1(F)[C@@]23F", {"method": "2d", "is_3d": False}),
    ("triple bond in a small ring", "C1#CC1", {"method": "etdg", "is_3d": True}),
    (
        "crowded aromatic",
        "c1ccc2c(c1)ccc1cc3cccc4c5cccc6cc7ccc8ccccc8c7c(c65)c(c12)c34",
        {"method": "etdg", "is_3d": True},
    ),
    (
        "no starting coordinates",
        "CCCCCCCCCC[NH+](CCCCCCCCCC)CC1C(=O)OC2CC3(C)CCCC(C)C3=CC21",
        {"method": "etkdg-random-coordinates", "is_3d": True},
    ),
    ("dative bond", "[NH3]->[Cu+2]", {}),
    ("radicals", "[CH2][CH2]", {}),
    ("carbene", "[C]", {}),
    ("isotopes", "[13CH3][2H]", {"num_heavy_atoms": 1}),
    ("hydride bridge to a metal", "[Li+].[BH4-]", {"num_heavy_atoms": 2}),
    ("large charge", "[C+4]", {}),
    ("surrounding blanks", "  CCO\n", {"num_heavy_atoms": 3}),
    ("enhanced stereo extension", "C[C@H](N)O |&1:1|", {"num_heavy_atoms": 4}),
    ("drawing in the extension", "CC |(0,0,;15,0,)|", {"method": "etkdg"}),
    ("many fragments", ".".join(["C"] * 20), {"num_heavy_atoms": 20}),
    ("heaviest element", "[Og]", {}),
    ("cube", "C12C3C4C1C5C2C3C45", {}),
]
