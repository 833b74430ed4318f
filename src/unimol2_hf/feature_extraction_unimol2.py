"""Molecules to model input: SMILES, RDKit molecules or plain arrays to padded integer features and coordinates."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.utils import logging

from .conformers import (
    Conformer,
    conformer_versions,
    generate_conformers,
    given_conformers,
    given_coordinates,
)
from .descriptors import rdkit_descriptors, require_descriptors
from .errors import (
    ExtraFeaturesError,
    MoleculeError,
    MoleculeTooLargeError,
    NoBondsError,
    SettingsError,
    UnexpectedMoleculeError,
    UniMol2Error,
)
from .molecule_features import dropped_graph_features, graph_features
from .molecules import (
    Molecule,
    atoms_of,
    canonical_form,
    checked_arrays,
    checked_charges,
    describe,
    has_bonds,
    heavy_atoms_of,
    is_single_molecule,
    molecule_from_arrays,
    molecule_of,
    named_arrays,
    sequence_of_molecules,
    standardize_heavy_atoms,
)
from .settings_unimol2 import FEATURIZER_OPTIONS, FeaturizerSettings
from .worker_pool import DEFAULT_READ_AHEAD, map_in_order

logger = logging.get_logger(__name__)

Features = dict[str, NDArray[Any]]
Context = TypeVar("Context")

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
# Of a saved `preprocessor_config.json`.
TYPE_KEY = "feature_extractor_type"
CANONICAL, AS_WRITTEN = "canonical", "as_written"
# Of each row one number or a vector, where rows bring them.
OPTIONAL_NAMES = ("labels", "label", "label_ids", "extra_features", "row_weights", "descriptors")
PAIRWISE_INPUT_NAMES = frozenset(("edge_features", "shortest_paths", "pair_types"))


@dataclass(frozen=True)
class FeaturizedMolecule:
    """One input molecule after featurisation: either conformers and features, or the error that prevented them.

    Attributes:
        features: the graph part of the model's input, unpadded; `None` where `error` is set.
        conformers: heavy-atom coordinates with provenance, at least one unless `error` is set.
        num_heavy_atoms: heavy atoms before any crop.
        has_graph_features: whether `features` describe the graph (false: the paper's dropped features).
        cropped: whether atoms were left out to meet `max_atoms`.
        standardized_smiles: what was read instead of the molecule (`standardize`); `None` where it was read itself.
        error: why the molecule could not be used.
        index: position among the given molecules.
        extra_features: (F,) numbers that the model reads besides the molecule; `None` for none.
        fingerprint: (256,) uint8, see `morgan_bits`; `None` where nobody asked for it.
        descriptors: (T,) those of RDKit that the model reads, NaN where one is not defined; `None` for none.
    """

    features: Features | None = None
    conformers: tuple[Conformer, ...] = ()
    num_heavy_atoms: int = 0
    has_graph_features: bool = False
    cropped: bool = False
    standardized_smiles: str | None = None
    error: MoleculeError | None = None
    index: int = 0
    extra_features: NDArray[np.float32] | None = None
    fingerprint: NDArray[np.uint8] | None = None
    descriptors: NDArray[np.float32] | None = None

    def at(self, index: int) -> "FeaturizedMolecule":
        """The same at a position, which its error names too."""
        if self.error is not None:
            self.error.index = index
        return replace(self, index=index)

    def model_inputs(self) -> Iterator[Features]:
        """One unpadded model input for each conformer."""
        if self.features is None:
            return
        besides = {"extra_features": self.extra_features, "descriptors": self.descriptors}
        given = {name: values for name, values in besides.items() if values is not None}
        for conformer in self.conformers:
            yield {**self.features, "coordinates": conformer.coordinates, **given}

    def with_extra_features(self, names: Sequence[str], given: Mapping[str, Any]) -> "FeaturizedMolecule":
        """The same with a number for each name; an error where one is missing, not finite, or not asked for."""
        if self.error is not None or (not names and not given):
            return self
        try:
            values = np.array([float(given[name]) for name in names], dtype=np.float32)
        except (KeyError, TypeError, ValueError):
            values = np.array([np.nan], dtype=np.float32)
        if set(given) - set(names) or not np.isfinite(values).all():
            asked = f"numbers for {', '.join(names)}" if names else "no extra features"
            reason = f"the model reads {asked}; given are {dict(given) or 'none'}"
            return FeaturizedMolecule(error=ExtraFeaturesError(reason, index=self.index), index=self.index)
        return replace(self, extra_features=values)

    def provenance(self) -> list[dict[str, Any]]:
        """One JSON-ready record for each conformer: where it comes from and what was done to the molecule."""
        shared = {
            "molecule_index": self.index,
            "num_heavy_atoms": self.num_heavy_atoms,
            "has_graph_features": self.has_graph_features,
            "cropped": self.cropped,
            "standardized_smiles": self.standardized_smiles,
            "undefined_descriptors": 0 if self.descriptors is None else int(np.isnan(self.descriptors).sum()),
        }
        return [
            {**shared, "conformer_index": number, **conformer.provenance.to_dict()}
            for number, conformer in enumerate(self.conformers)
        ]


@dataclass(frozen=True)
class KnownConformers:
    """A molecule with what `generate_conformers` made of it before, atoms in the order of its canonical SMILES."""

    molecule: Molecule
    conformers: tuple[Conformer, ...]


class UniMol2FeatureExtractor(FeatureExtractionMixin):
    """Turns molecules into Uni-Mol2's input; saved as `preprocessor_config.json`, loaded by `AutoFeatureExtractor`.

    A molecule is a SMILES string, an RDKit molecule, a tuple `(atomic_numbers, coordinates)` or `(atomic_numbers,
    coordinates, bonds)`, a mapping with those names (and optionally `formal_charges`), or a mapping of `smiles` and
    its heavy atoms' `coordinates`, (n, 3) or (conformers, n, 3), in the order of the SMILES; with `atomic_numbers`,
    (n, 3) in an order of their own, stereo as in the geometry. Coordinates are in angstrom and may include hydrogens,
    which are dropped; given ones (an RDKit molecule's own conformers too) are
    used as they are, shifted to their centre. Input without bonds gets the paper's dropped graph features.

    Other molecules get conformers by a ladder: ETKDG as in the reference, ETDG for crowded polycyclic aromatics, other
    seeds, random starting coordinates, the 2D depiction; each bounded by its attempts, so that the same molecule gets
    the same conformer on a busy machine. `preprocessor_config.json` and each conformer's provenance tell the versions
    of the `ladder` and of `rdkit`; a loaded extractor works, and reports, by those of its own process.

    Args:
        descriptor_names: RDKit descriptors that the model reads besides, computed of each molecule with bonds.
        **settings: fields of `FeaturizerSettings`, which see; kept as attributes.

    Raises:
        SettingsError: a setting is not known or out of range.
    """

    model_input_names: ClassVar[list[str]] = list(MODEL_INPUT_NAMES)

    def __init__(self, descriptor_names: Sequence[str] = (), **settings: Any) -> None:
        self.descriptor_names = list(descriptor_names)
        require_descriptors(self.descriptor_names)
        # What an earlier version saved says the same as then.
        if TYPE_KEY in settings and "atom_order" not in settings:
            settings["atom_order"] = AS_WRITTEN
        for each in fields(FeaturizerSettings):
            setattr(self, each.name, settings.pop(each.name, each.default))
        _refuse_typos(settings)
        # A saved folder tells the versions that it was made with; this process has its own.
        _warn_of_other_versions(settings)
        super().__init__(**{name: value for name, value in settings.items() if name not in conformer_versions()})
        self.settings()

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As Transformers has it, but what is asked for also counts where a folder, an older one, does not name it."""
        asked = {name: kwargs.pop(name) for name in (*FEATURIZER_OPTIONS, "descriptor_names") if name in kwargs}
        return super().from_dict({**feature_extractor_dict, **asked}, **kwargs)

    @staticmethod
    def pipeline_classes() -> tuple[type, type]:
        """The pipelines that this featurizer serves: of embeddings, of properties.

        Transformers copies what a file imports when it saves the class that stands there: by this line a folder that
        was published with its code and is saved elsewhere still has its pipelines.
        """
        from .pipeline_unimol2 import MoleculeEmbeddingPipeline, MoleculePropertyPipeline  # noqa: PLC0415

        return MoleculeEmbeddingPipeline, MoleculePropertyPipeline

    def to_dict(self) -> dict[str, Any]:
        """The settings, and the versions of ladder and RDKit with which this process makes conformers."""
        return {**super().to_dict(), **conformer_versions()}

    def settings(self, **overrides: Any) -> FeaturizerSettings:
        """The extractor's settings with single ones replaced for one call.

        Raises:
            SettingsError: an unknown setting or a value out of range.
        """
        unknown = sorted(set(overrides) - set(FEATURIZER_OPTIONS))
        if unknown:
            raise SettingsError(f"unknown setting {unknown[0]!r}; known are {', '.join(FEATURIZER_OPTIONS)}")
        given = {name: value for name, value in overrides.items() if value is not None}
        return FeaturizerSettings(**{**{name: getattr(self, name) for name in FEATURIZER_OPTIONS}, **given})

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
        many: Iterable[Molecule] = [molecules] if single else sequence_of_molecules(molecules)  # type: ignore[list-item]
        pairs = ((None, molecule) for molecule in many)
        for _, result in self.featurize_pairs(pairs, num_workers=num_workers, read_ahead=read_ahead, **overrides):
            # A lone molecule has no position worth naming in its error.
            if single and result.error is not None:
                result.error.index = None
            yield result

    def featurize_pairs(
        self,
        pairs: Iterable[tuple[Context, Molecule]],
        *,
        num_workers: int = 0,
        read_ahead: int = DEFAULT_READ_AHEAD,
        **overrides: Any,
    ) -> Iterator[tuple[Context, FeaturizedMolecule]]:
        """As `featurize`, for molecules that each come with a context, which stays beside them in this process."""
        names = tuple(self.descriptor_names)
        work = partial(featurize_molecule, settings=self.settings(**overrides), descriptor_names=names)
        numbered = (((index, context), molecule) for index, (context, molecule) in enumerate(pairs))
        for (index, context), result in map_in_order(work, numbered, num_workers, read_ahead):
            yield context, result.at(index)

    def pad(
        self,
        encoded_inputs: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Pad unpadded model inputs (rows of `FeaturizedMolecule.model_inputs`) to one batch; padding is 0.

        As Transformers' tokenizers have it, so that `DataCollatorWithPadding(extractor)` works.

        Args:
            encoded_inputs: mappings with the model's input names, or one mapping of lists. Numeric labels (`labels`,
                `label`, `label_ids`), `extra_features`, `row_weights` and `descriptors`, one number or vector a row,
                are kept, as float32; other keys are left out.
            padding: True or "longest": to the largest molecule; "max_length": to `max_length` atoms.
            max_length: most atoms; a larger molecule is an error.
            pad_to_multiple_of: round the number of atoms up.
            return_tensors: "pt" or "np".

        Raises:
            UniMol2Error: no rows, a missing input, labels that only some rows have, more atoms than `max_length`.
        """
        rows = _rows_of(encoded_inputs)
        longest = max(len(row["input_ids"]) for row in rows)
        if max_length is not None and longest > max_length:
            raise UniMol2Error(f"a molecule of {longest} atoms does not fit into max_length={max_length}")
        width = _padded_width(longest, padding, max_length, pad_to_multiple_of)
        arrays = {
            name: _pad_arrays([np.asarray(row[name]) for row in rows], width, name in PAIRWISE_INPUT_NAMES)
            for name in MODEL_INPUT_NAMES
        }
        return BatchFeature({**arrays, **_optional_of(rows)}, tensor_type=return_tensors)


def _rows_of(encoded: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]) -> Sequence[Mapping[str, Any]]:
    if isinstance(encoded, Mapping):
        names, columns = list(encoded), list(encoded.values())
        encoded = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    if not encoded:
        raise UniMol2Error("there is no molecule to pad; give at least one")
    missing = [name for name in MODEL_INPUT_NAMES if name not in encoded[0]]
    if missing:
        raise UniMol2Error(f"cannot pad: {', '.join(missing)} missing; pass rows of `featurize`")
    return encoded


def _padded_width(longest: int, padding: bool | str, max_length: int | None, multiple: int | None) -> int:
    if padding not in (True, "longest", "max_length"):
        raise UniMol2Error(f"padding is {padding!r}; molecules of one batch need True, 'longest' or 'max_length'")
    if padding == "max_length" and max_length is None:
        raise UniMol2Error("padding='max_length' needs max_length")
    width = max_length if padding == "max_length" and max_length is not None else longest
    return -(-width // (multiple or 1)) * (multiple or 1)


def _optional_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[np.float32]]:
    """Labels and what else the rows bring, one row's beside the other's."""
    found = {}
    for name in OPTIONAL_NAMES:
        present = sum(name in row for row in rows)
        if 0 < present < len(rows):
            raise UniMol2Error(f"{len(rows) - present} of {len(rows)} rows lack {name!r}; use NaN labels")
        if present:
            found[name] = np.stack([np.asarray(row[name], dtype=np.float32) for row in rows])
    return found


def _warn_of_other_versions(saved: Mapping[str, Any]) -> None:
    """Say once that another ladder or RDKit makes other conformers than those that the folder's model was used with."""
    own = conformer_versions()
    others = [
        f"{name} {saved[name]} (here {own[name]})"
        for name in own
        if saved.get(name) is not None and _major(saved[name]) != _major(own[name])
    ]
    if others:
        logger.warning_once(f"the folder's conformers were made by {', '.join(others)}: the same SMILES may get others")


def _major(version: Any) -> str:
    """Of RDKit year and month."""
    return ".".join(str(version).split(".")[:2])


def _refuse_typos(unknown: Mapping[str, Any]) -> None:
    """Transformers passes keys of its own, so only what looks like a misspelt setting is refused."""
    for name in unknown:
        close = get_close_matches(name, FEATURIZER_OPTIONS, n=1, cutoff=0.8)
        if close:
            raise SettingsError(f"unknown setting {name!r}; did you mean {close[0]!r}?")


def featurize_molecule(
    molecule: Molecule | KnownConformers, settings: FeaturizerSettings, descriptor_names: Sequence[str] = ()
) -> FeaturizedMolecule:
    """Featurise one molecule; an unusable one gives a result with `error` set."""
    try:
        return _featurize(molecule, settings, descriptor_names)
    except MoleculeError as known:
        error = known
    except Exception as unknown:
        # RDKit raises bare C++ errors for molecules nobody thought of; one of them must not end a library's run.
        error = UnexpectedMoleculeError.of(unknown)
    if error.molecule is None:
        error.molecule = describe(molecule.molecule if isinstance(molecule, KnownConformers) else molecule)
    return FeaturizedMolecule(error=error)


def _featurize(
    molecule: Molecule | KnownConformers, settings: FeaturizerSettings, descriptor_names: Sequence[str]
) -> FeaturizedMolecule:
    if isinstance(molecule, KnownConformers):
        return _featurize_graph(molecule_of(molecule.molecule), settings, descriptor_names, molecule.conformers)
    if descriptor_names and not has_bonds(molecule):
        raise NoBondsError("the model reads descriptors, and the molecule has no bonds to compute them from; give them")
    needs_bonds = settings.use_graph_features or descriptor_names
    if isinstance(molecule, Mapping) and "atomic_numbers" in molecule and not needs_bonds:
        # Nothing asks for those that a SMILES would tell.
        molecule = {name: value for name, value in molecule.items() if name != "smiles"}
    if isinstance(molecule, tuple) or (isinstance(molecule, Mapping) and "smiles" not in molecule):
        return _featurize_arrays(named_arrays(molecule), settings, descriptor_names)
    return _featurize_graph(molecule_of(molecule), settings, descriptor_names)


def _featurize_graph(
    molecule: Chem.Mol,
    settings: FeaturizerSettings,
    descriptor_names: Sequence[str],
    known: tuple[Conformer, ...] = (),
) -> FeaturizedMolecule:
    written, _ = heavy_atoms_of(molecule)
    heavy = standardize_heavy_atoms(written, settings.standardize)
    atoms = atoms_of(heavy)
    count = len(atoms)
    _check_size(count, settings)
    # A molecule's own conformers win over generated ones, however many were asked for.
    conformers = given_conformers(heavy, max(1, settings.num_conformers))
    form = canonical_form(heavy) if settings.atom_order == CANONICAL else None
    order = np.arange(count) if form is None else form[1]
    if form is not None:
        heavy, atoms = form[0], atoms_of(form[0])
    conformers = [replace(each, coordinates=each.coordinates[order]) for each in conformers]
    # From the sanitised heavy atoms: an edited molecule may carry hydrogen counts of its past.
    conformers = conformers or list(known) or generate_conformers(heavy, settings)
    graph = graph_features(heavy, atoms) if settings.use_graph_features else dropped_graph_features(count)
    features = {**_atom_inputs([atom.GetAtomicNum() for atom in atoms]), **graph}
    made = FeaturizedMolecule(features, tuple(conformers), count, settings.use_graph_features)
    if settings.standardize != "none":
        made = replace(made, standardized_smiles=_smiles_if_other(heavy, written))
    if descriptor_names:
        made = replace(made, descriptors=rdkit_descriptors(heavy, descriptor_names))
    if count > settings.max_atoms:
        kept = _central_atoms(Chem.GetDistanceMatrix(heavy), settings.max_atoms)
        made, order = _crop(made, kept), order[kept]
    # Rows are in the order in which the user wrote the atoms.
    return made if form is None else _with_atoms(made, np.argsort(order))


def _smiles_if_other(heavy: Chem.Mol, written: Chem.Mol) -> str | None:
    """SMILES of what was made of a molecule; `None` where that is the molecule."""
    made = str(Chem.MolToSmiles(heavy))
    return None if made == Chem.MolToSmiles(written) else made


def _check_size(count: int, settings: FeaturizerSettings) -> None:
    if count > settings.max_atoms and settings.max_atoms_policy == "error":
        raise MoleculeTooLargeError(
            f"{count} heavy atoms are more than max_atoms={settings.max_atoms}; "
            'leave it out, raise max_atoms, or ask for max_atoms_policy="crop"'
        )


def _featurize_arrays(
    arrays: dict[str, Any], settings: FeaturizerSettings, descriptor_names: Sequence[str]
) -> FeaturizedMolecule:
    atomic_numbers, coordinates = checked_arrays(arrays["atomic_numbers"], arrays["coordinates"])
    if arrays.get("bonds") is not None:
        bonds = [tuple(bond) for bond in arrays["bonds"]]
        molecule = molecule_from_arrays(atomic_numbers, coordinates, bonds, arrays.get("formal_charges"))
        return _featurize_graph(molecule, settings, descriptor_names)
    checked_charges(arrays.get("formal_charges"), len(atomic_numbers))
    heavy = atomic_numbers != 1
    atomic_numbers, coordinates = atomic_numbers[heavy], coordinates[heavy]
    count = len(atomic_numbers)
    _check_size(count, settings)
    features = {**_atom_inputs(atomic_numbers), **dropped_graph_features(count)}
    complete = FeaturizedMolecule(features, (given_coordinates(coordinates),), count)
    if count <= settings.max_atoms:
        return complete
    distances = np.linalg.norm(coordinates[:, None] - coordinates[None], axis=-1)
    return _crop(complete, _central_atoms(distances, settings.max_atoms))


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
    kept = _with_atoms(molecule, atoms)
    conformers = (replace(each, coordinates=_recentre(each.coordinates)) for each in kept.conformers)
    return replace(kept, conformers=tuple(conformers), cropped=True)


def _with_atoms(molecule: FeaturizedMolecule, atoms: NDArray[np.intp]) -> FeaturizedMolecule:
    """The given atoms of a molecule, in that order."""
    features = {
        name: array[np.ix_(atoms, atoms)] if name in PAIRWISE_INPUT_NAMES else array[atoms]
        for name, array in (molecule.features or {}).items()
    }
    conformers = (replace(each, coordinates=each.coordinates[atoms]) for each in molecule.conformers)
    return replace(molecule, features=features, conformers=tuple(conformers))


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
