"""Molecules to model input: SMILES, RDKit molecules or plain arrays to padded integer features and coordinates."""

import multiprocessing
import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from itertools import islice
from numbers import Number
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin

from .conformers import (
    RETRY_SEED_STEP,
    Conformer,
    ConformerSettings,
    conformer_versions,
    generate_conformers,
    given_conformers,
    given_coordinates,
)
from .errors import (
    CoordinatesError,
    MoleculeError,
    MoleculeTooLargeError,
    MoleculeTypeError,
    UniMol2Error,
)
from .molecule_features import (
    UNREACHABLE_PATH,
    check_atoms,
    checked_charges,
    dropped_graph_features,
    graph_features,
    heavy_atoms_of,
    molecule_from_arrays,
    parse_smiles,
    remove_hydrogens,
)

Molecule = str | Chem.Mol | tuple[Any, ...] | Mapping[str, Any] | MoleculeError
Features = dict[str, NDArray[Any]]

MODEL_INPUT_NAMES = (
    "input_ids",
    "attention_mask",
    "atom_features",
    "degrees",
    "edge_features",
    "shortest_paths",
    "pair_types",
    "coordinates",
)
PAIRWISE_INPUT_NAMES = frozenset(("edge_features", "shortest_paths", "pair_types"))
_MAX_ATOMS_POLICIES = ("error", "crop")
_CONFORMER_SETTINGS = ("num_conformers", "include_2d", "seed", "embed_timeout", "num_retries", "allow_2d_fallback")
_OTHER_SETTINGS = ("max_atoms", "max_atoms_policy", "use_graph_features")
_MAX_SEED = 2**31 - 1
_ARRAY_KEYS = ("atomic_numbers", "coordinates", "bonds", "formal_charges")
_WORKER_CHUNK = 16
_WORKER_WATCH_SECONDS = 1.0
DEFAULT_READ_AHEAD = 64


@dataclass(frozen=True)
class FeaturizerSettings:
    """What `featurize_molecule` needs to know; travels to worker processes."""

    conformers: ConformerSettings = field(default_factory=ConformerSettings)
    max_atoms: int = 256
    max_atoms_policy: str = "error"
    use_graph_features: bool = True


@dataclass(frozen=True)
class FeaturizedMolecule:
    """One input molecule after featurisation: either conformers and features, or the error that prevented them.

    Attributes:
        index: position among the given molecules.
        features: the graph part of the model's input, unpadded; `None` where `error` is set.
        conformers: heavy-atom coordinates with provenance, at least one unless `error` is set.
        num_heavy_atoms: heavy atoms before any crop.
        has_graph_features: whether `features` describe the graph (false: the paper's dropped features).
        cropped: whether atoms were left out to meet `max_atoms`.
        error: why the molecule could not be used.
    """

    index: int
    features: Features | None = None
    conformers: tuple[Conformer, ...] = ()
    num_heavy_atoms: int = 0
    has_graph_features: bool = False
    cropped: bool = False
    error: MoleculeError | None = None

    def model_inputs(self) -> Iterator[Features]:
        """One unpadded model input for each conformer."""
        if self.features is None:
            return
        for conformer in self.conformers:
            yield {**self.features, "coordinates": conformer.coordinates}

    def provenance(self) -> list[dict[str, Any]]:
        """One JSON-ready record for each conformer: where it comes from and what was done to the molecule."""
        shared = {
            "molecule_index": self.index,
            "num_heavy_atoms": self.num_heavy_atoms,
            "has_graph_features": self.has_graph_features,
            "cropped": self.cropped,
        }
        return [
            {**shared, "conformer_index": number, **conformer.provenance.to_dict()}
            for number, conformer in enumerate(self.conformers)
        ]


class UniMol2FeatureExtractor(FeatureExtractionMixin):
    """Turns molecules into Uni-Mol2's input; saved as `preprocessor_config.json`, loaded by `AutoFeatureExtractor`.

    A molecule is a SMILES string, an RDKit molecule, a tuple `(atomic_numbers, coordinates)` or `(atomic_numbers,
    coordinates, bonds)`, a mapping with those names (and optionally `formal_charges`), or a mapping of `smiles` and
    its heavy atoms' `coordinates`, (n, 3) or (conformers, n, 3), in the order of the SMILES. Coordinates are in
    angstrom and may include hydrogens, which are dropped; given ones (an RDKit molecule's own conformers too) are
    used as they are, shifted to their centre. Input without bonds gets the paper's dropped graph features.

    Other molecules get conformers by a ladder: ETKDG as in the reference, ETDG for crowded polycyclic aromatics, other
    seeds, random starting coordinates, the 2D depiction; each bounded by its attempts, so that the same molecule gets
    the same conformer on a busy machine. `preprocessor_config.json` and each conformer's provenance tell the versions
    of the `ladder` and of `rdkit`; a loaded extractor works, and reports, by those of its own process.

    Args:
        max_atoms: most heavy atoms of a molecule; published models saw at most 256.
        max_atoms_policy: "error" refuses a larger molecule; "crop" keeps the `max_atoms` atoms nearest, in bonds, to
            the graph's centre (ties by atom index) and records it.
        use_graph_features: false gives every molecule the dropped features (the paper's QM9 setting).
        num_conformers: 3D conformers for each molecule without its own coordinates.
        include_2d: add RDKit's 2D depiction as one more conformer.
        seed: seed of a molecule's first conformer; the k-th uses `seed + k`.
        embed_timeout: seconds after which RDKit is stopped; the last resort, which the provenance's note tells.
        num_retries: further seeds before random starting coordinates.
        allow_2d_fallback: use the 2D depiction, and record it, when no 3D conformer can be embedded.

    Raises:
        UniMol2Error: a setting is out of range.
    """

    model_input_names: ClassVar[list[str]] = list(MODEL_INPUT_NAMES)

    def __init__(
        self,
        max_atoms: int = 256,
        max_atoms_policy: str = "error",
        use_graph_features: bool = True,
        num_conformers: int = 1,
        include_2d: bool = False,
        seed: int = 42,
        embed_timeout: int = ConformerSettings.embed_timeout,
        num_retries: int = 3,
        allow_2d_fallback: bool = True,
        **kwargs: Any,
    ) -> None:
        self.max_atoms = max_atoms
        self.max_atoms_policy = max_atoms_policy
        self.use_graph_features = use_graph_features
        self.num_conformers = num_conformers
        self.include_2d = include_2d
        self.seed = seed
        self.embed_timeout = embed_timeout
        self.num_retries = num_retries
        self.allow_2d_fallback = allow_2d_fallback
        _refuse_typos(kwargs)
        # A saved folder tells the versions that it was made with; this process has its own.
        super().__init__(**{name: value for name, value in kwargs.items() if name not in conformer_versions()})
        self.settings()

    def to_dict(self) -> dict[str, Any]:
        """The settings, and the versions of ladder and RDKit with which this process makes conformers."""
        return {**super().to_dict(), **conformer_versions()}

    def settings(self, **overrides: Any) -> FeaturizerSettings:
        """The extractor's settings with single ones replaced for one call.

        Raises:
            UniMol2Error: an unknown setting or a value out of range.
        """
        names = _CONFORMER_SETTINGS
        conformers = ConformerSettings(**{name: getattr(self, name) for name in names})
        settings = FeaturizerSettings(conformers, self.max_atoms, self.max_atoms_policy, self.use_graph_features)
        for name, value in overrides.items():
            if value is None:
                continue
            if name in names:
                settings = replace(settings, conformers=replace(settings.conformers, **{name: value}))
            elif name in _OTHER_SETTINGS:
                settings = replace(settings, **{name: value})
            else:
                raise UniMol2Error(f"unknown setting {name!r}; UniMol2FeatureExtractor lists the known ones")
        _check_settings(settings)
        return settings

    def __call__(
        self,
        molecules: Molecule | Iterable[Molecule],
        *,
        return_tensors: str | None = "pt",
        return_provenance: bool = False,
        num_workers: int = 0,
        **overrides: Any,
    ) -> BatchFeature:
        """Featurise one or many molecules into one padded batch: `model(**batch)` works.

        Rows are molecules, or, with several conformers, each molecule's conformers one after another.

        Args:
            molecules: one molecule or an iterable of them (see the class).
            return_tensors: "pt" or "np".
            return_provenance: add `provenance`, a list of one record a row (pop it before calling the model).
            num_workers: worker processes for conformers and features; 0 works in this process.
            **overrides: any setting of the class, for this call only.

        Returns:
            For B rows of at most N atoms: `input_ids`, `attention_mask`, `degrees` (B, N); `atom_features` (B, N, 8);
            `edge_features` (B, N, N, 3); `shortest_paths` (B, N, N); `pair_types` (B, N, N, 2); `coordinates` (B, N, 3)
            float32, angstrom.

        Raises:
            MoleculeError: a molecule cannot be used; `featurize` records it instead.
        """
        featurized = list(self.featurize(molecules, num_workers=num_workers, **overrides))
        for result in featurized:
            if result.error is not None:
                raise result.error
        rows = [row for result in featurized for row in result.model_inputs()]
        batch = self.pad(rows, return_tensors=return_tensors)
        if return_provenance:
            batch["provenance"] = [record for result in featurized for record in result.provenance()]
        return batch

    def featurize(
        self,
        molecules: Molecule | Iterable[Molecule],
        *,
        num_workers: int = 0,
        read_ahead: int = DEFAULT_READ_AHEAD,
        **overrides: Any,
    ) -> Iterator[FeaturizedMolecule]:
        """Featurise molecules one by one, in order; a bad molecule yields a result that carries its `error`.

        Streams: with workers, input is read ahead of what is taken out by about `read_ahead` molecules a worker, so
        that workers are busy while the caller works on results.

        Among the molecules may be `MoleculeError`s, for those that could not be read: they keep their place.
        """
        single = is_single_molecule(molecules)
        many: Iterable[Molecule] = [molecules] if single else molecules  # type: ignore[list-item,assignment]
        work = partial(featurize_molecule, settings=self.settings(**overrides))
        # A lone molecule has no position worth naming in its error.
        numbered: Iterable[tuple[int, Molecule]] = enumerate(many)
        for result in map_in_order(work, numbered, num_workers, read_ahead):
            if single and result.error is not None:
                result.error.index = None
            yield result

    def pad(
        self,
        features: Sequence[Mapping[str, Any]],
        return_tensors: str | None = "pt",
        pad_to: int | None = None,
    ) -> BatchFeature:
        """Pad unpadded model inputs (rows of `FeaturizedMolecule.model_inputs`) to one batch; padding is 0.

        Args:
            features: mappings with the model's input names; other keys are left out.
            return_tensors: "pt" or "np".
            pad_to: number of atoms to pad to; by default the largest molecule's.

        Raises:
            UniMol2Error: no rows, a missing input, or more atoms than `pad_to`.
        """
        if not features:
            raise UniMol2Error("there is no molecule to pad; give at least one")
        missing = [name for name in MODEL_INPUT_NAMES if name not in features[0]]
        if missing:
            raise UniMol2Error(f"cannot pad: {', '.join(missing)} missing; pass rows of `featurize`")
        longest = max(len(row["input_ids"]) for row in features)
        width = longest if pad_to is None else pad_to
        if longest > width:
            raise UniMol2Error(f"a molecule of {longest} atoms does not fit into pad_to={width}")
        arrays = {
            name: _pad_arrays([np.asarray(row[name]) for row in features], width, name in PAIRWISE_INPUT_NAMES)
            for name in MODEL_INPUT_NAMES
        }
        return BatchFeature(arrays, tensor_type=return_tensors)


def _refuse_typos(unknown: Mapping[str, Any]) -> None:
    """Transformers passes keys of its own, so only what looks like a misspelt setting is refused."""
    for name in unknown:
        close = get_close_matches(name, [*_CONFORMER_SETTINGS, *_OTHER_SETTINGS], n=1, cutoff=0.8)
        if close:
            raise UniMol2Error(f"unknown setting {name!r}; did you mean {close[0]!r}?")


def _check_settings(settings: FeaturizerSettings) -> None:
    conformers = settings.conformers
    for name in ("num_conformers", "seed", "embed_timeout", "num_retries"):
        _require_whole_number(name, getattr(conformers, name))
    _require_whole_number("max_atoms", settings.max_atoms)
    if settings.max_atoms_policy not in _MAX_ATOMS_POLICIES:
        raise UniMol2Error(f"max_atoms_policy is {settings.max_atoms_policy!r}; use one of {_MAX_ATOMS_POLICIES}")
    # A longer path would alias the code for "unreachable".
    if not 1 <= settings.max_atoms <= UNREACHABLE_PATH:
        raise UniMol2Error(f"max_atoms is {settings.max_atoms}; use 1 to {UNREACHABLE_PATH}")
    if conformers.num_conformers < 0 or conformers.num_conformers + conformers.include_2d < 1:
        raise UniMol2Error(
            f"num_conformers={conformers.num_conformers} and include_2d={conformers.include_2d} leave no conformer; "
            "ask for at least one"
        )
    # RDKit reads a negative seed as "random": the same molecule would get other coordinates every time.
    last_seed = conformers.seed + conformers.num_conformers + RETRY_SEED_STEP * conformers.num_retries
    if conformers.seed < 0 or last_seed > _MAX_SEED:
        raise UniMol2Error(f"seed is {conformers.seed}; use 0 to {_MAX_SEED - (last_seed - conformers.seed)}")
    if conformers.embed_timeout < 1 or conformers.num_retries < 0:
        raise UniMol2Error(
            f"embed_timeout={conformers.embed_timeout} must be at least 1 second "
            f"and num_retries={conformers.num_retries} at least 0"
        )


def _require_whole_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UniMol2Error(f"{name} is {value!r}; give a whole number")


def is_single_molecule(molecules: object) -> bool:
    """Whether an input is one molecule rather than many; a tuple is one if it starts with an array of numbers."""
    if isinstance(molecules, tuple):
        return len(molecules) > 0 and _holds_numbers(molecules[0])
    if isinstance(molecules, str | bytes | Chem.Mol | Mapping):
        return True
    return not isinstance(molecules, Iterable) and not hasattr(molecules, "__getitem__")


def _holds_numbers(values: object) -> bool:
    if isinstance(values, np.ndarray):
        return True
    return isinstance(values, Sequence) and not isinstance(values, str) and all(isinstance(v, Number) for v in values)


def map_in_order(work: Callable[[Any], Any], items: Iterable[Any], num_workers: int, read_ahead: int) -> Iterator[Any]:
    """Apply `work` to each item, in worker processes if asked, yielding results in order."""
    if num_workers <= 0:
        yield from map(work, items)
        return
    # Forked workers start at once and need no importable __main__; they run RDKit only, never torch.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    remaining = iter(items)
    most_pending = num_workers * max(1, read_ahead // _WORKER_CHUNK)
    with ProcessPoolExecutor(num_workers, context, _end_with_parent, (os.getpid(),)) as pool:
        pending: deque[Future[list[Any]]] = deque()
        broken: Exception | None = None
        while broken is None:
            chunk, broken = _read_chunk(work, remaining)
            if not chunk:
                break
            pending.append(pool.submit(_apply_to_all, work, chunk))
            if len(pending) > most_pending:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
        if broken is not None:
            raise broken


def _end_with_parent(parent: int) -> None:
    """Let a worker end when its parent was killed: the pool's own clean-up never ran, and it would wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WORKER_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read_chunk(
    work: Callable[[Any], Any], remaining: Iterator[Any]
) -> tuple[list[bytes | FeaturizedMolecule], Exception | None]:
    """The next items, and the error with which the input broke off, if it did."""
    chunk: list[bytes | FeaturizedMolecule] = []
    try:
        for item in islice(remaining, _WORKER_CHUNK):
            chunk.append(_freeze(work, item))
    except Exception as error:
        return chunk, error
    return chunk, None


def _freeze(work: Callable[[Any], Any], item: tuple[int, Molecule]) -> bytes | FeaturizedMolecule:
    """An item as it is now, for a worker: the caller may change its molecule the moment the next one is read."""
    index, molecule = item
    if isinstance(molecule, Chem.Mol):
        # RDKit's own pickles round coordinates to float32.
        options = Chem.PropertyPickleOptions.AllProps | Chem.PropertyPickleOptions.CoordsAsDouble
        return pickle.dumps((index, _FrozenMolecule(molecule.ToBinary(int(options)))))
    try:
        return pickle.dumps(item)
    except Exception:
        return work(item)


@dataclass(frozen=True)
class _FrozenMolecule:
    binary: Any


def _apply_to_all(work: Callable[[Any], Any], chunk: list[bytes | FeaturizedMolecule]) -> list[Any]:
    return [work(_thaw(item)) if isinstance(item, bytes) else item for item in chunk]


def _thaw(frozen: bytes) -> tuple[int, Any]:
    index, molecule = pickle.loads(frozen)
    return index, Chem.Mol(molecule.binary) if isinstance(molecule, _FrozenMolecule) else molecule


def featurize_molecule(numbered: tuple[int, Molecule], settings: FeaturizerSettings) -> FeaturizedMolecule:
    """Featurise one (position, molecule); an unusable molecule gives a result with `error` set."""
    index, molecule = numbered
    try:
        return _featurize(index, molecule, settings)
    except MoleculeError as known:
        error = known
    except Exception as unknown:
        # RDKit raises bare C++ errors for molecules nobody thought of; one of them must not end a library's run.
        error = MoleculeError(f"unexpected {type(unknown).__name__}: {unknown}")
    error.index = index
    if error.molecule is None:
        error.molecule = _describe(molecule)
    return FeaturizedMolecule(index, error=error)


def _describe(molecule: object) -> object:
    """What to show of a molecule in an error message; never an object that cannot cross process borders."""
    if isinstance(molecule, Chem.Mol):
        try:
            return str(Chem.MolToSmiles(molecule))
        except (RuntimeError, ValueError):
            return "an RDKit molecule"
    return molecule if isinstance(molecule, str | int | float | type(None)) else type(molecule).__name__


def _featurize(index: int, molecule: Molecule, settings: FeaturizerSettings) -> FeaturizedMolecule:
    if isinstance(molecule, tuple) or (isinstance(molecule, Mapping) and "smiles" not in molecule):
        return _featurize_arrays(index, _named_arrays(molecule), settings)
    return _featurize_graph(index, molecule_of(molecule), settings)


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
        _describe(molecule),
    )


def _featurize_graph(index: int, molecule: Chem.Mol, settings: FeaturizerSettings) -> FeaturizedMolecule:
    heavy, atoms = heavy_atoms_of(molecule)
    count = len(atoms)
    _check_size(count, settings)
    # A molecule's own conformers win over generated ones, however many were asked for.
    given = given_conformers(heavy, max(1, settings.conformers.num_conformers))
    # From the sanitised heavy atoms: an edited molecule may carry hydrogen counts of its past.
    conformers = given or generate_conformers(heavy, settings.conformers)
    graph = graph_features(heavy, atoms) if settings.use_graph_features else dropped_graph_features(count)
    features = {**_atom_inputs([atom.GetAtomicNum() for atom in atoms]), **graph}
    complete = FeaturizedMolecule(index, features, tuple(conformers), count, settings.use_graph_features)
    if count <= settings.max_atoms:
        return complete
    return _crop(complete, _central_atoms(Chem.GetDistanceMatrix(heavy), settings.max_atoms))


def _check_size(count: int, settings: FeaturizerSettings) -> None:
    if count > settings.max_atoms and settings.max_atoms_policy == "error":
        raise MoleculeTooLargeError(
            f"{count} heavy atoms are more than max_atoms={settings.max_atoms}; "
            'leave it out, raise max_atoms, or ask for max_atoms_policy="crop"'
        )


def _with_coordinates(molecule: Mapping[str, Any]) -> Chem.Mol:
    """The heavy atoms of a SMILES with the coordinates (n, 3) or (conformers, n, 3) that come with it."""
    unknown = sorted(set(map(str, molecule)) - {"smiles", "coordinates"})
    if unknown or "coordinates" not in molecule:
        raise MoleculeTypeError(f"a SMILES with coordinates has smiles and coordinates, not {', '.join(molecule)}")
    heavy = remove_hydrogens(parse_smiles(molecule["smiles"]))
    heavy.RemoveAllConformers()
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
        conformer = Chem.Conformer(count)
        conformer.SetPositions(np.ascontiguousarray(each))
        heavy.AddConformer(conformer, assignId=True)
    return heavy


def _named_arrays(molecule: Mapping[str, Any] | tuple[Any, ...]) -> dict[str, Any]:
    if isinstance(molecule, tuple):
        molecule = dict(zip(_ARRAY_KEYS, molecule, strict=False)) if 2 <= len(molecule) <= 4 else {}
    unknown = sorted(set(map(str, molecule)) - set(_ARRAY_KEYS))
    if unknown or not {"atomic_numbers", "coordinates"} <= set(molecule):
        raise MoleculeTypeError(
            "a molecule given as arrays needs atomic_numbers and coordinates, and may have bonds and formal_charges"
            + (f"; unknown: {', '.join(unknown)}" if unknown else "")
        )
    return dict(molecule)


def _featurize_arrays(index: int, arrays: dict[str, Any], settings: FeaturizerSettings) -> FeaturizedMolecule:
    atomic_numbers, coordinates = _checked_arrays(arrays["atomic_numbers"], arrays["coordinates"])
    if arrays.get("bonds") is not None:
        bonds = [tuple(bond) for bond in arrays["bonds"]]
        molecule = molecule_from_arrays(atomic_numbers, coordinates, bonds, arrays.get("formal_charges"))
        return _featurize_graph(index, molecule, settings)
    checked_charges(arrays.get("formal_charges"), len(atomic_numbers))
    heavy = atomic_numbers != 1
    atomic_numbers, coordinates = atomic_numbers[heavy], coordinates[heavy]
    count = len(atomic_numbers)
    _check_size(count, settings)
    features = {**_atom_inputs(atomic_numbers), **dropped_graph_features(count)}
    complete = FeaturizedMolecule(index, features, (given_coordinates(coordinates),), count)
    if count <= settings.max_atoms:
        return complete
    distances = np.linalg.norm(coordinates[:, None] - coordinates[None], axis=-1)
    return _crop(complete, _central_atoms(distances, settings.max_atoms))


def _checked_arrays(atomic_numbers: Any, coordinates: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
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


def _atom_inputs(atomic_numbers: Sequence[int] | NDArray[np.int64]) -> Features:
    numbers = np.asarray(atomic_numbers, dtype=np.int64)
    return {"input_ids": numbers, "attention_mask": np.ones_like(numbers)}


def _central_atoms(distances: NDArray[np.floating[Any]], count: int) -> NDArray[np.intp]:
    """The `count` atoms nearest to the most central one (least mean distance), in atom order."""
    center = int(distances.mean(axis=1).argmin())
    nearest = np.argsort(distances[center], kind="stable")[:count]
    return np.sort(nearest)


def _crop(molecule: FeaturizedMolecule, atoms: NDArray[np.intp]) -> FeaturizedMolecule:
    """Keep some atoms; their features stay those of the whole molecule."""
    features = {
        name: array[np.ix_(atoms, atoms)] if name in PAIRWISE_INPUT_NAMES else array[atoms]
        for name, array in (molecule.features or {}).items()
    }
    conformers = tuple(
        Conformer(_recentre(conformer.coordinates[atoms]), conformer.provenance) for conformer in molecule.conformers
    )
    return replace(molecule, features=features, conformers=conformers, cropped=True)


def _recentre(coordinates: NDArray[np.float32]) -> NDArray[np.float32]:
    return coordinates - coordinates.mean(axis=0)


def _pad_arrays(arrays: Sequence[NDArray[Any]], width: int, pairwise: bool) -> NDArray[Any]:
    """Stack arrays whose first (pairwise: first two) axes are atoms, padded with 0 to `width` atoms."""
    atom_axes = 2 if pairwise else 1
    sample = arrays[0]
    stacked = np.zeros((len(arrays), *(width,) * atom_axes, *sample.shape[atom_axes:]), dtype=sample.dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[tuple(slice(length) for length in array.shape[:atom_axes])] = array
    return stacked
