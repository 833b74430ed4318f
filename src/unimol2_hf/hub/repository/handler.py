"""Inference Endpoints: molecules in, embeddings or predictions out.

The endpoint's server imports this file from the repository's folder, makes one `EndpointHandler` when it starts, and
calls it from several threads.
"""

import ctypes
import importlib.util
import json
import logging
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from transformers import pipeline

logger = logging.getLogger(__name__)

Answer = dict[str, Any]
Parameters = dict[str, tuple[Callable[[Any], bool], str]]

CHECK_FILE = "check_unimol2.py"
ENVIRONMENT_PREFIX = "UNIMOL2_MAX_"
EMBEDDING_TASK, PROPERTY_TASK = "molecule-embedding", "molecule-property-prediction"
PROPERTY_ARCHITECTURES = {f"UniMol2ForProperty{kind}" for kind in ("Regression", "Classification", "Prediction")}
POOLINGS = ("cls", "mean", "cls_mean", "layers_mean")
FEATURIZER_PARAMETERS = ("num_conformers", "seed")
ARRAY_NAMES = ("atomic_numbers", "coordinates", "bonds", "formal_charges")
BOND_ORDERS = (1, 1.5, 2, 3)

LARGEST_SEED = 10**9
LARGEST_ATOMIC_NUMBER = 118
LARGEST_CHARGE = 100
LARGEST_COORDINATE = 1e6  # angstrom
LARGEST_FEATURE = 1e30
ATOMS_PER_HEAVY_ATOM = 5  # in arrays, which may hold hydrogens; methane has as many
BONDS_PER_ATOM = 4
# What RDKit does with rings holds Python's lock, and no clock ends it: 256 atoms in 769 rings take it a minute, twelve
# phenylenes in a ring, which has 4,096 shortest ways round, 13 s, and thirty all memory.
LARGEST_RING_COUNT = 128  # of independent rings; C240 has 121
LARGEST_CYCLE_COUNT = 2_500  # of shortest cycles, at most; ten phenylenes in a ring come to 2,068
CONFORMERS_AT_ONCE = 8  # between two looks at the clock
# Of the time that is left, what one try at embedding may take: four ways are each tried with ever more attempts, and
# what a last try takes, those before it take together once more.
SHARE_OF_A_TRY = 1 / 8
TIMED_OUT = "embedding timed out"  # in a conformer's note
LARGEST_ANSWER = 4_000_000  # numbers of all atoms' embeddings; some 80 MB of JSON
MALLOC_ARENA_MAX = -8  # of malloc.h
SHORTEST_WAIT = 0.1  # seconds; a thread that is free begins sooner
LONGEST_MESSAGE = 500
LONGEST_NAME = 40

WHAT_A_MOLECULE_IS = (
    'a molecule is a SMILES string, {"smiles": ...}, {"atomic_numbers": [...], "coordinates": [[x, y, z], ...]}, the '
    'latter with "bonds" and "formal_charges" if you have them, or {"molecule": one of these, "features": {...}}'
)


class BadInputError(ValueError):
    """A request, or one of its molecules, that cannot be answered; the message says how to mend it."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    def as_answer(self) -> Answer:
        # RDKit's longer messages go on with its source files.
        line = str(self).strip().partition("\n")[0]
        return {"error": line[:LONGEST_MESSAGE], "error_code": self.code}


@dataclass(frozen=True)
class Limits:
    """What a request may ask for. `UNIMOL2_MAX_MOLECULES` and so on, in the environment, replace the defaults.

    Attributes:
        molecules: of a request.
        heavy_atoms: of a molecule; the model's own limit (`max_atoms`) holds besides.
        smiles_characters: of a SMILES string.
        conformers: that are made of a molecule.
        seconds: of a request; molecules that were not reached by then are told.
    """

    molecules: int = 128
    heavy_atoms: int = 256
    smiles_characters: int = 2000
    conformers: int = 10
    seconds: int = 50

    @classmethod
    def from_environment(cls) -> "Limits":
        """Raises `ValueError` for a variable that is no whole number."""
        names = {each.name: f"{ENVIRONMENT_PREFIX}{each.name.upper()}" for each in fields(cls)}
        return cls(**{field: _whole_number_of(name) for field, name in names.items() if name in os.environ})


class EndpointHandler:
    """Answers requests by the folder's model: its properties where it was fine-tuned for some, else its embedding.

    At start the repository's own check runs where there is one; what it raises ends the start.
    """

    def __init__(self, path: str = "") -> None:
        folder = Path(path)
        self._limits = Limits.from_environment()
        _run_own_check(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._is_property = bool(PROPERTY_ARCHITECTURES & set(config["architectures"]))
        task = PROPERTY_TASK if self._is_property else EMBEDDING_TASK
        self._pipeline = pipeline(task, str(folder), trust_remote_code=True)
        self._feature_names = tuple(self._pipeline.model.config.extra_feature_names) if self._is_property else ()
        extractor = self._pipeline.feature_extractor
        if extractor.max_atoms_policy == "error":
            self._limits = replace(self._limits, heavy_atoms=min(self._limits.heavy_atoms, extractor.max_atoms))
        self._known = _known_parameters(self._is_property, self._limits)
        _share_heaps()
        # Few threads that stay; the server's come and go.
        self._model_thread = ThreadPoolExecutor(1)
        self._request_threads = ThreadPoolExecutor(os.cpu_count())

    def __call__(self, body: Any) -> Any:
        """One answer for each molecule of {"inputs": ..., "parameters": {...}}; one error for a bad request.

        A molecule that cannot be used has "error" and "error_code" in its place, and its neighbours their answers.
        """
        deadline = time.monotonic() + self._limits.seconds
        try:
            molecules, parameters = self._read(body)
            return self._request_threads.submit(self._answers, molecules, parameters, deadline).result()
        except BadInputError as error:
            return error.as_answer()
        except Exception:
            logger.exception("a request could not be answered")
            return BadInputError("the request could not be answered", "internal").as_answer()

    def _read(self, body: Any) -> tuple[list[Any], dict[str, Any]]:
        if not isinstance(body, Mapping) or "inputs" not in body:
            raise BadInputError('a request is an object with "inputs", and may have "parameters"', "request")
        _refuse_unknown(body, ("inputs", "parameters"), "request")
        parameters = body.get("parameters")
        return self._read_inputs(body["inputs"]), self._read_parameters({} if parameters is None else parameters)

    def _read_inputs(self, inputs: Any) -> list[Any]:
        if isinstance(inputs, str | Mapping):
            return [inputs]
        if not isinstance(inputs, list):
            raise BadInputError(f"inputs is a molecule or a list of them; {WHAT_A_MOLECULE_IS}", "request")
        if len(inputs) > self._limits.molecules:
            told = f"{len(inputs)} molecules are more than {self._limits.molecules}; send several requests"
            raise BadInputError(told, "too_many")
        return inputs

    def _read_parameters(self, parameters: Any) -> dict[str, Any]:
        if not isinstance(parameters, Mapping):
            raise BadInputError(f"parameters is an object with any of {', '.join(self._known)}", "parameters")
        _refuse_unknown(parameters, tuple(self._known), "parameters")
        for name, value in parameters.items():
            is_good, mend = self._known[name]
            if not is_good(value):
                raise BadInputError(f"{name} is no value that can be used; give {mend}", "parameters")
        return dict(parameters)

    def _answers(self, molecules: list[Any], parameters: dict[str, Any], deadline: float) -> list[Answer]:
        settings = {name: parameters.pop(name) for name in FEATURIZER_PARAMETERS if name in parameters}
        answers = [_not_reached().as_answer() for _ in molecules]
        ready: list[tuple[int, Any]] = []
        atoms = 0
        for index, given in enumerate(molecules):
            if time.monotonic() >= deadline:
                break
            try:
                featurized = self._featurize(given, settings, deadline)
                atoms += featurized.num_heavy_atoms
                self._check_size_of_answer(atoms, parameters)
                ready.append((index, featurized))
            except BadInputError as error:
                answers[index] = error.as_answer()
            if sum(len(each.conformers) for _, each in ready) >= CONFORMERS_AT_ONCE:
                self._run(ready, parameters, answers, deadline)
                ready = []
        self._run(ready, parameters, answers, deadline)
        return answers

    def _featurize(self, given: Any, settings: dict[str, Any], deadline: float) -> Any:
        """A molecule as the model's input; the clock may end its embedding, but never decides its conformer."""
        left = int((deadline - time.monotonic()) * SHARE_OF_A_TRY)
        timeout = min(self._pipeline.feature_extractor.embed_timeout, max(1, left))
        featurized = self._pipeline.preprocess(self._molecule(given), **settings, embed_timeout=timeout)
        if _was_ended_by_the_clock(featurized):
            raise _not_reached()
        if featurized.error is not None:
            raise _refusal_of(featurized.error)
        return featurized

    def _molecule(self, given: Any) -> Any:
        """A molecule of a request as the pipeline takes it."""
        features: Any = {}
        if isinstance(given, Mapping) and "molecule" in given:
            _refuse_unknown(given, ("molecule", "features"), "molecule_type")
            given, features = given["molecule"], given.get("features")
        self._check_features({} if features is None else features)
        molecule = _read_molecule(given, self._limits)
        return {"molecule": molecule, "features": dict(features)} if self._feature_names else molecule

    def _check_features(self, features: Any) -> None:
        is_complete = isinstance(features, Mapping) and features.keys() == set(self._feature_names)
        if is_complete and all(_is_number(value, LARGEST_FEATURE) for value in features.values()):
            return
        names = ", ".join(self._feature_names)
        mend = f'a number for {names} in "features", and no other' if names else 'no "features": leave them out'
        raise BadInputError(f"the model reads {mend}", "extra_features")

    def _check_size_of_answer(self, atoms: int, parameters: dict[str, Any]) -> None:
        if parameters.get("per_atom") and atoms * self._pipeline.model.config.hidden_size > LARGEST_ANSWER:
            raise BadInputError("the answer grows too large; send fewer molecules, or none with per_atom", "too_many")

    def _run(
        self, ready: list[tuple[int, Any]], parameters: dict[str, Any], answers: list[Answer], deadline: float
    ) -> None:
        """Put the model's answers in their places, unless the model is busy until the deadline."""
        if not ready:
            return
        wanted = self._model_thread.submit(self._results_of, [each for _, each in ready], parameters)
        wait([wanted], timeout=max(SHORTEST_WAIT, deadline - time.monotonic()))
        # What has begun is waited for.
        if not wanted.cancel():
            for (index, _), result in zip(ready, wanted.result(), strict=True):
                answers[index] = _answer_of(result)

    def _results_of(self, featurized: list[Any], parameters: dict[str, Any]) -> list[Any]:
        return list(self._pipeline.run_featurized(featurized, CONFORMERS_AT_ONCE, **parameters))


def _share_heaps() -> None:
    """Two heaps for all threads: of glibc's eight for each core, each keeps what its largest request needed."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(MALLOC_ARENA_MAX, 2)


def _run_own_check(folder: Path) -> None:
    """Compare the folder's files and outputs with those that were published, where it has a check for that."""
    path = folder / CHECK_FILE
    if not path.is_file():
        return
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    module.check(folder, trust_remote_code=True)


def _whole_number_of(variable: str) -> int:
    text = os.environ[variable]
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise ValueError(f"{variable} is {text!r}; use a whole number from 1 to 999999999")
    return int(text)


def _known_parameters(is_property: bool, limits: Limits) -> Parameters:
    """By name, what a value must be, and how to say so."""
    of_task: Parameters = {
        "pooling": (lambda value: isinstance(value, str) and value in POOLINGS, f"one of {', '.join(POOLINGS)}"),
        "per_atom": (lambda value: isinstance(value, bool), "true or false"),
    }
    if is_property:
        of_task = {"coverage": (lambda value: _is_number(value, 1) and 0 < value < 1, "a number between 0 and 1")}
    return {
        **of_task,
        "num_conformers": (
            lambda value: _is_whole(value, 1, limits.conformers),
            f"a whole number from 1 to {limits.conformers}",
        ),
        "seed": (lambda value: _is_whole(value, 0, LARGEST_SEED), f"a whole number from 0 to {LARGEST_SEED}"),
    }


def _refuse_unknown(given: Mapping[Any, Any], known: tuple[str, ...], code: str) -> None:
    for name in given:
        if name not in known:
            shown = ascii(name[:LONGEST_NAME]) if isinstance(name, str) else "a name that is no text"
            raise BadInputError(f"unknown: {shown}; known are {', '.join(known)}", code)


def _read_molecule(given: Any, limits: Limits) -> Any:
    if isinstance(given, str):
        return _read_smiles(given, limits)
    if isinstance(given, Mapping) and "smiles" in given:
        _refuse_unknown(given, ("smiles",), "molecule_type")
        return _read_smiles(given["smiles"], limits)
    if isinstance(given, Mapping) and {"atomic_numbers", "coordinates"} <= given.keys():
        _refuse_unknown(given, ARRAY_NAMES, "molecule_type")
        return _read_arrays(given, limits)
    raise BadInputError(WHAT_A_MOLECULE_IS, "molecule_type")


def _read_smiles(smiles: Any, limits: Limits) -> str:
    if not isinstance(smiles, str):
        raise BadInputError(WHAT_A_MOLECULE_IS, "molecule_type")
    if len(smiles) > limits.smiles_characters:
        told = f"a SMILES string of {len(smiles)} characters; at most {limits.smiles_characters} are read"
        raise BadInputError(told, "too_large")
    if not smiles.isascii():
        raise BadInputError("not a SMILES string: it holds characters that are not ASCII", "smiles")
    with rdBase.BlockLogs():
        drawn = Chem.MolFromSmiles(smiles.strip(), sanitize=False)
    # What cannot be read at all, the model's code tells.
    if drawn is not None:
        _check_heavy_atoms(drawn.GetNumHeavyAtoms(), limits)
        _check_rings(drawn)
    return smiles


def _read_arrays(given: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    most = ATOMS_PER_HEAVY_ATOM * limits.heavy_atoms
    mend = f"atomic_numbers is a list of at most {most} whole numbers from 1 to {LARGEST_ATOMIC_NUMBER}"
    numbers = _list_of(given["atomic_numbers"], range(most + 1), _is_element, mend, "molecule_type")
    count = len(numbers)
    _check_heavy_atoms(count - numbers.count(1), limits)
    one_each = range(count, count + 1)
    mend = f"{count} atoms need {count} coordinates [x, y, z], finite numbers in angstrom"
    coordinates = _list_of(given["coordinates"], one_each, _is_position, mend, "coordinates")
    molecule: dict[str, Any] = {"atomic_numbers": np.array(numbers), "coordinates": np.array(coordinates, dtype=float)}
    if given.get("bonds") is not None:
        mend = "bonds are [first atom, second atom, order]: atoms counted from 0, order 1, 1.5 (aromatic), 2 or 3"
        counts = range(BONDS_PER_ATOM * count + 1)
        molecule["bonds"] = _list_of(given["bonds"], counts, lambda each: _is_bond(each, count), mend, "molecule")
        _check_rings(_graph_of(count, molecule["bonds"]))
    if given.get("formal_charges") is not None:
        mend = f"{count} atoms need {count} formal charges, whole numbers"
        molecule["formal_charges"] = _list_of(given["formal_charges"], one_each, _is_charge, mend, "molecule")
    return molecule


def _check_heavy_atoms(count: int, limits: Limits) -> None:
    if count > limits.heavy_atoms:
        told = f"{count} heavy atoms are more than {limits.heavy_atoms}; leave the molecule out"
        raise BadInputError(told, "too_large")


def _graph_of(atoms: int, bonds: list[Any]) -> Any:
    """Its bonds alone, each once; one that is given twice, or joins an atom to itself, the model's code tells."""
    graph = Chem.RWMol()
    for _ in range(atoms):
        graph.AddAtom(Chem.Atom(6))
    for first, second in {(min(bond[:2]), max(bond[:2])) for bond in bonds}:
        if first != second:
            graph.AddBond(first, second)
    return graph


def _check_rings(graph: Any) -> None:
    """Refuse what RDKit would search for rings too long."""
    independent = graph.GetNumBonds() - graph.GetNumAtoms() + len(Chem.GetMolFrags(graph))
    if independent > LARGEST_RING_COUNT:
        told = f"{independent} independent rings are more than {LARGEST_RING_COUNT}; leave the molecule out"
        raise BadInputError(told, "too_large")
    Chem.FindRingFamilies(graph)
    found = graph.GetRingInfo()
    families = zip(found.AtomRingFamilies(), found.BondRingFamilies(), strict=True)
    # A graph has fewer cycles than 2 to the number of its independent ones; RDKit's own count of them overflows.
    if sum(2 ** (len(bonds) - len(atoms) + 1) for atoms, bonds in families) > LARGEST_CYCLE_COUNT:
        told = f"its rings can be passed in more than {LARGEST_CYCLE_COUNT} equally short ways; leave the molecule out"
        raise BadInputError(told, "too_large")


def _list_of(values: Any, counts: range, is_good: Callable[[Any], bool], mend: str, code: str) -> list[Any]:
    # The length first: what is too long is not looked at.
    if isinstance(values, list) and len(values) in counts and all(map(is_good, values)):
        return values
    raise BadInputError(mend, code)


def _is_element(value: Any) -> bool:
    return _is_whole(value, 1, LARGEST_ATOMIC_NUMBER)


def _is_charge(value: Any) -> bool:
    return _is_whole(value, -LARGEST_CHARGE, LARGEST_CHARGE)


def _is_position(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(each, LARGEST_COORDINATE) for each in value)


def _is_bond(value: Any, atoms: int) -> bool:
    if not isinstance(value, list) or len(value) != 3 or not _is_number(value[2], max(BOND_ORDERS)):
        return False
    return value[2] in BOND_ORDERS and all(_is_whole(each, 0, atoms - 1) for each in value[:2])


def _is_number(value: Any, largest: float) -> bool:
    """Whether it is a number, of such a size at most; NaN and booleans are none."""
    return type(value) in (int, float) and -largest <= value <= largest


def _is_whole(value: Any, lowest: int, highest: int) -> bool:
    return type(value) is int and lowest <= value <= highest


def _was_ended_by_the_clock(featurized: Any) -> bool:
    """Whether a way of embedding was given up for want of time: what came after it depends on the machine's load."""
    error = featurized.error
    if error is not None:
        return error.code == "no_conformer" and TIMED_OUT in error.reason
    return any(TIMED_OUT in conformer.provenance.note for conformer in featurized.conformers)


def _refusal_of(error: Any) -> BadInputError:
    """Of a molecule that the model's code refused, without what only its log should tell."""
    if error.code != "unexpected":
        return BadInputError(error.reason, error.code)
    logger.error("a molecule could not be read: %s", error.reason)
    return BadInputError("the molecule could not be read; correct it, or leave it out", error.code)


def _not_reached() -> BadInputError:
    return BadInputError("the time of the request was over; send fewer molecules, or leave this one out", "time_limit")


def _answer_of(result: Mapping[str, Any]) -> Answer:
    """A pipeline's result as JSON has it, its provenance in short."""
    if result["error"] is not None:
        return BadInputError(result["error"], result["error_code"]).as_answer()
    answer = {name: _plain(value) for name, value in result.items() if name not in ("error", "error_code")}
    kept = ("method", "is_3d")
    return {**answer, "provenance": [{name: each[name] for name in kept} for each in result["provenance"]]}


def _plain(value: Any) -> Any:
    """Arrays and tuples as lists; null for a number that is not finite, which JSON does not have."""
    if isinstance(value, np.ndarray):
        return value.tolist() if np.isfinite(value).all() else _plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
