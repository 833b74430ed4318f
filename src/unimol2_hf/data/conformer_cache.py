"""Conformers made once: a cache on disk in a library's own format, shared by all commands and runs.

A folder of the cache belongs to one set of conformer settings, ladder and RDKit; a molecule is found by its canonical
SMILES. What comes from the cache is, to the bit, what would have been made.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..conformers import Conformer, ConformerProvenance, conformer_versions
from ..feature_extraction_unimol2 import CANONICAL, FeaturizedMolecule, KnownConformers, UniMol2FeatureExtractor
from ..molecules import Molecule, canonical_order, has_bonds, heavy_atoms_to_read
from ..settings_unimol2 import ConformerSettings, FeaturizerSettings
from .cache_folder import CacheFolder, cache_root
from .shards import CONFORMER_SCHEMA

Context = TypeVar("Context")

_ABOUT_FILE = "conformers.json"


@dataclass(frozen=True)
class CacheEntry:
    """A molecule that may be in the cache: canonical SMILES, its atoms' indices in that order, what is known."""

    smiles: str
    order: NDArray[np.intp]
    conformers: tuple[Conformer, ...]


class ConformerCache:
    """The conformers that were made under certain settings.

    Args:
        root: folder of the whole cache; it is made.
        settings: of which those that decide conformers name a folder inside.

    Raises:
        OutputFolderError: the folder cannot be made.
        LibraryError: a file in it is damaged.
    """

    def __init__(self, root: Path, settings: FeaturizerSettings) -> None:
        self._settings = settings
        decisive = {each.name: getattr(settings, each.name) for each in fields(ConformerSettings)}
        about = {"settings": decisive, **conformer_versions()}
        self._kept = CacheFolder(root, about, _ABOUT_FILE, CONFORMER_SCHEMA, "conformers")
        self.write = self._kept.write

    def __len__(self) -> int:
        return len(self._kept)

    def look_up(self, molecule: Molecule) -> CacheEntry | None:
        """What is known of a molecule; `None` for one that brings its coordinates or cannot be read."""
        try:
            if not has_bonds(molecule):
                return None
            heavy = heavy_atoms_to_read(molecule, self._settings.standardize)
            if any(conformer.Is3D() for conformer in heavy.GetConformers()):
                return None
            smiles, order = canonical_order(heavy)
        # A MoleculeError is a ValueError; RDKit's own are bare C++ errors. Featurising it tells the reason.
        except (RuntimeError, ValueError):
            return None
        return CacheEntry(smiles, order, self._conformers(smiles))

    def add(self, entry: CacheEntry, molecule: FeaturizedMolecule) -> None:
        """Keep what was made of a molecule."""
        if molecule.features is None or molecule.cropped:
            return
        self._kept.add(
            {
                "row": None,
                "id": "",
                "smiles": entry.smiles,
                "atomic_numbers": molecule.features["input_ids"][entry.order].astype(np.uint8),
                "conformers": [each.coordinates[entry.order].ravel() for each in molecule.conformers],
                "provenance": [each.provenance.to_dict() for each in molecule.conformers],
                "error": None,
                "error_code": None,
            }
        )

    def _conformers(self, smiles: str) -> tuple[Conformer, ...]:
        flat, provenance = self._kept.get(smiles, "conformers", "provenance") or ((), ())
        return tuple(
            Conformer(np.asarray(values, dtype=np.float32).reshape(-1, 3), ConformerProvenance(**entry))
            for values, entry in zip(flat, provenance, strict=True)
        )


def cache_for(
    extractor: UniMol2FeatureExtractor, where: str, overrides: Mapping[str, Any] | None = None
) -> ConformerCache | None:
    """The cache that a command's setting asks for; `None` where it asks for none, or atoms are taken as written.

    Args:
        extractor: with whose settings conformers are made.
        where: see `CacheSettings`.
        overrides: settings of this call.
    """
    settings, root = extractor.settings(**(overrides or {})), cache_root(where)
    return None if root is None or settings.atom_order != CANONICAL else ConformerCache(root, settings)


def featurize_cached(
    extractor: UniMol2FeatureExtractor,
    pairs: Iterable[tuple[Context, Molecule]],
    cache: ConformerCache | None,
    **options: Any,
) -> Iterator[tuple[Context, FeaturizedMolecule]]:
    """As `extractor.featurize_pairs`, with the conformers that the cache knows; it learns the others."""
    if cache is None:
        yield from extractor.featurize_pairs(pairs, **options)
        return

    def looked_up() -> Iterator[tuple[tuple[Context, CacheEntry | None], Any]]:
        for context, molecule in pairs:
            entry = cache.look_up(molecule)
            known = entry.conformers if entry is not None else ()
            yield (context, entry), KnownConformers(molecule, known) if known else molecule

    try:
        for (context, entry), made in extractor.featurize_pairs(looked_up(), **options):
            if entry is not None and not entry.conformers:
                cache.add(entry, made)
            yield context, made
    finally:
        cache.write()
