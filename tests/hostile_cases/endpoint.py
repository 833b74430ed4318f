"""The hostile table, bodies of requests to an endpoint: each gets one error, or one failed molecule.

A row is a name, the body, the error's code and a part of its message.
"""

from typing import Any

Row = tuple[str, Any, str, str]

THREE = [[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [2.0, 1.4, 0.3]]
TOO_MANY = 129


def arrays(**changes: Any) -> dict[str, Any]:
    """The heavy atoms of ethanol, with something changed."""
    return {"inputs": {"atomic_numbers": [6, 6, 8], "coordinates": THREE, **changes}}


def moved(value: Any) -> dict[str, Any]:
    return arrays(coordinates=[[0.0, value, 0.0], *THREE[1:]])


def bonded(count: int, pairs: set[tuple[int, int]]) -> dict[str, Any]:
    """Iron atoms, joined as given."""
    coordinates = [[float(index), index % 7, index % 3] for index in range(count)]
    bonds = [[first, second, 1] for first, second in sorted(pairs)]
    return {"inputs": {"atomic_numbers": [26] * count, "coordinates": coordinates, "bonds": bonds}}


def phenylenes(count: int) -> str:
    """In a ring, which has 2 to the count shortest ways round."""
    return "c1%99ccc(cc1)" + "c1ccc(cc1)" * (count - 2) + "c1ccc%99cc1"


EIGHT_EACH = {(index, (index + step) % 256) for index in range(256) for step in (1, 7, 29, 83)}
ALL_OF_45 = {(first, second) for second in range(45) for first in range(second)}


def with_parameters(**parameters: Any) -> dict[str, Any]:
    return {"inputs": "CCO", "parameters": parameters}


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


# To a model of embeddings.
REFUSED_BODIES: list[Row] = [
    # The request.
    ("nothing", None, "request", 'an object with "inputs"'),
    ("a list", ["CCO"], "request", 'an object with "inputs"'),
    ("a SMILES", "inputs", "request", 'an object with "inputs"'),
    ("no inputs", {"molecules": ["CCO"]}, "request", 'an object with "inputs"'),
    ("inputs are null", {"inputs": None}, "request", "a molecule or a list of them"),
    ("inputs are a number", {"inputs": 42}, "request", "a molecule or a list of them"),
    ("inputs are true", {"inputs": True}, "request", "a molecule or a list of them"),
    ("options", {"inputs": "CCO", "options": {"use_cache": False}}, "request", "unknown: 'options'"),
    ("too many", {"inputs": ["C"] * TOO_MANY}, "too_many", "129 molecules are more than 128"),
    ("a million nulls", {"inputs": [None] * 10**6}, "too_many", "1000000 molecules"),
    # Parameters.
    ("parameters in a list", {"inputs": "CCO", "parameters": ["cls"]}, "parameters", "with any of pooling"),
    ("parameters are false", {"inputs": "CCO", "parameters": False}, "parameters", "with any of pooling"),
    ("unknown parameter", with_parameters(top_k=3), "parameters", "unknown: 'top_k'; known are pooling, per_atom"),
    ("another task's parameter", with_parameters(coverage=0.9), "parameters", "unknown: 'coverage'"),
    ("a setting that is not for requests", with_parameters(max_embed_atoms=10**6), "parameters", "unknown"),
    ("a parameter's name of a million characters", with_parameters(**{"x" * 10**6: 1}), "parameters", "unknown: 'xx"),
    ("unknown pooling", with_parameters(pooling="max"), "parameters", "pooling is no value that can be used; give one"),
    ("pooling in a list", with_parameters(pooling=["cls"]), "parameters", "pooling"),
    ("per_atom is a number", with_parameters(per_atom=1), "parameters", "give true or false"),
    ("no conformer", with_parameters(num_conformers=0), "parameters", "a whole number from 1 to 10"),
    ("a million conformers", with_parameters(num_conformers=10**6), "parameters", "from 1 to 10"),
    ("true conformers", with_parameters(num_conformers=True), "parameters", "from 1 to 10"),
    ("half a conformer", with_parameters(num_conformers=1.5), "parameters", "from 1 to 10"),
    ("negative seed", with_parameters(seed=-1), "parameters", "a whole number from 0 to"),
    ("seed beyond all bounds", with_parameters(seed=10**400), "parameters", "a whole number from 0 to"),
    ("seed is NaN", with_parameters(seed=float("nan")), "parameters", "a whole number from 0 to"),
    ("seed is text", with_parameters(seed="1"), "parameters", "a whole number from 0 to"),
    # A molecule.
    ("null", {"inputs": [None]}, "molecule_type", "a molecule is a SMILES string"),
    ("a number", {"inputs": [6]}, "molecule_type", "a molecule is a SMILES string"),
    ("a list in the list", {"inputs": [["CCO"]]}, "molecule_type", "a molecule is a SMILES string"),
    ("an empty object", {"inputs": {}}, "molecule_type", "a molecule is a SMILES string"),
    ("a SMILES that is null", {"inputs": {"smiles": None}}, "molecule_type", "a molecule is a SMILES string"),
    ("a SMILES with a name", {"inputs": {"smiles": "CCO", "name": "a"}}, "molecule_type", "unknown: 'name'"),
    ("a molecule in a molecule", {"inputs": {"molecule": {"molecule": "CCO"}}}, "molecule_type", "a molecule is"),
    ("empty", {"inputs": ""}, "empty", "the SMILES is empty"),
    ("blank", {"inputs": [" \n"]}, "empty", "the SMILES is empty"),
    ("a million characters", {"inputs": "C" * 10**6}, "too_large", "1000000 characters; at most 2000 are read"),
    ("a long chain", {"inputs": "C" * 300}, "too_large", "300 heavy atoms are more than 256"),
    ("phenylenes in a ring", {"inputs": phenylenes(40)}, "too_large", "more than 2500 equally short ways; leave"),
    ("deep branches", {"inputs": "C(" * 900 + "C" + ")" * 100}, "smiles", "RDKit cannot read it"),
    ("Chinese", {"inputs": "阿司匹林"}, "smiles", "not ASCII"),
    ("half a character", {"inputs": "C\ud800"}, "smiles", "not ASCII"),
    ("null byte", {"inputs": "C\0C"}, "smiles", "RDKit cannot read it"),
    ("unclosed ring", {"inputs": "C1CC"}, "smiles", "ring closures"),
    ("two lines", {"inputs": "CC\nO"}, "smiles", "give the SMILES alone"),
    ("impossible valence", {"inputs": "C(C)(C)(C)(C)C"}, "sanitization", "chemically impossible"),
    ("wildcard", {"inputs": "*C"}, "unsupported_atom", "wildcard"),
    # Arrays.
    ("no coordinates", {"inputs": {"atomic_numbers": [6]}}, "molecule_type", "a molecule is a SMILES string"),
    ("unknown name", arrays(mass=46.1), "molecule_type", "unknown: 'mass'"),
    ("a SMILES with arrays", arrays(smiles="CCO"), "molecule_type", "unknown"),
    ("no atoms", arrays(atomic_numbers=[], coordinates=[]), "empty", "no heavy atom"),
    ("symbols", arrays(atomic_numbers=["C", "C", "O"]), "molecule_type", "whole numbers from 1 to 118"),
    ("booleans as atoms", arrays(atomic_numbers=[True, True, True]), "molecule_type", "whole numbers from 1 to 118"),
    ("element 119", arrays(atomic_numbers=[6, 119, 8]), "molecule_type", "whole numbers from 1 to 118"),
    ("nested atoms", arrays(atomic_numbers=[[6, 6, 8]]), "molecule_type", "whole numbers from 1 to 118"),
    ("a million atoms", arrays(atomic_numbers=[6] * 10**6), "molecule_type", "a list of at most 1280"),
    ("300 atoms", arrays(atomic_numbers=[6] * 300, coordinates=THREE * 100), "too_large", "300 heavy atoms"),
    ("coordinates are null", arrays(coordinates=None), "coordinates", "3 atoms need 3 coordinates"),
    ("one atom's missing", arrays(coordinates=THREE[:2]), "coordinates", "3 atoms need 3 coordinates"),
    ("two columns", arrays(coordinates=[[0.0, 1.0]] * 3), "coordinates", "[x, y, z]"),
    ("NaN", moved(float("nan")), "coordinates", "finite numbers"),
    ("infinity", moved(float("inf")), "coordinates", "finite numbers"),
    ("NaN as text", moved("NaN"), "coordinates", "finite numbers"),
    ("a boolean as a number", moved(True), "coordinates", "finite numbers"),
    ("beyond floats", moved(10**400), "coordinates", "finite numbers"),
    ("all in one point", arrays(coordinates=[[1.0, 1.0, 1.0]] * 3), "coordinates", "in one point"),
    ("a bond to no atom", arrays(bonds=[[0, 3, 1]]), "molecule", "bonds are [first atom, second atom, order]"),
    ("an order that is true", arrays(bonds=[[0, 1, True]]), "molecule", "bonds are [first atom"),
    ("an order of five", arrays(bonds=[[0, 1, 5]]), "molecule", "bonds are [first atom"),
    ("a bond by name", arrays(bonds=[[0, 1, "double"]]), "molecule", "bonds are [first atom"),
    ("a million bonds", arrays(bonds=[[0, 1, 1]] * 10**6), "molecule", "bonds are [first atom"),
    ("a bond twice", arrays(bonds=[[0, 1, 1], [1, 0, 1]]), "molecule", "bonded twice"),
    ("a charge too few", arrays(bonds=[[0, 1, 1]], formal_charges=[0, 0]), "molecule", "3 formal charges"),
    ("half a charge", arrays(bonds=[[0, 1, 1]], formal_charges=[0, 0, 0.5]), "molecule", "3 formal charges"),
    ("a huge charge", arrays(bonds=[[0, 1, 1]], formal_charges=[0, 0, 10**30]), "molecule", "3 formal charges"),
    ("eight bonds an atom", bonded(256, EIGHT_EACH), "too_large", "769 independent rings are more than 128; leave"),
    ("each bonded to all", bonded(256, ALL_OF_45), "too_large", "946 independent rings are more than 128"),
    # Numbers besides.
    ("features unasked for", {"inputs": {"molecule": "C", "features": {"ph": 7}}}, "extra_features", "leave them out"),
    ("features in a list", {"inputs": {"molecule": "C", "features": [7]}}, "extra_features", "leave them out"),
]

# The same, of what no JSON holds, or no reader of JSON passes on.
NOT_JSON: list[Row] = [
    ("bytes", b"CCO", "request", 'an object with "inputs"'),
    ("bytes as inputs", {"inputs": b"CCO"}, "request", "a molecule or a list of them"),
    ("bytes as a molecule", {"inputs": [b"CCO"]}, "molecule_type", "a molecule is a SMILES string"),
    ("a tuple", {"inputs": ("CCO",)}, "request", "a molecule or a list of them"),
    ("deep nesting", {"inputs": nested(100_000)}, "molecule_type", "a molecule is a SMILES string"),
    ("deep coordinates", arrays(coordinates=nested(100_000)), "coordinates", "3 atoms need 3 coordinates"),
    ("a name that is no text", {"inputs": "C", "parameters": {7: 1}}, "parameters", "a name that is no text"),
]

# To a model that predicts properties and reads a number, ph.
REFUSED_OF_PROPERTIES: list[Row] = [
    ("coverage of one", with_parameters(coverage=1), "parameters", "a number between 0 and 1"),
    ("coverage is true", with_parameters(coverage=True), "parameters", "a number between 0 and 1"),
    ("coverage is NaN", with_parameters(coverage=float("nan")), "parameters", "a number between 0 and 1"),
    ("pooling", with_parameters(pooling="cls"), "parameters", "unknown: 'pooling'; known are coverage"),
    ("no features", {"inputs": "CCO"}, "extra_features", "the model reads a number for ph"),
    ("features of null", {"inputs": {"molecule": "C", "features": None}}, "extra_features", "a number for ph"),
    ("a number that is null", {"inputs": {"molecule": "C", "features": {"ph": None}}}, "extra_features", "for ph"),
    ("a number that is true", {"inputs": {"molecule": "C", "features": {"ph": True}}}, "extra_features", "for ph"),
    ("one number more", {"inputs": {"molecule": "C", "features": {"ph": 7, "x": 1}}}, "extra_features", "for ph"),
    ("beyond floats", {"inputs": {"molecule": "C", "features": {"ph": 10**400}}}, "extra_features", "for ph"),
]

# What is no JSON at all, or too deep to be read; the server refuses it before the handler sees it.
RAW_BODIES: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("half an object", b'{"inputs": ["CCO"'),
    ("not UTF-8", b'{"inputs": "\xff\xfe"}'),
    ("an unclosed depth", b'{"inputs": ' + b"[" * 100_000),
    ("a depth", b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
]
