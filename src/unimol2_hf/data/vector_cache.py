"""Vectors of molecules made once: the conformer cache's twin, for a model's vectors and RDKit's descriptors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..molecules import Molecule
from .cache_folder import CacheFolder, cache_root

_ABOUT_FILE = "vectors.json"
_SCHEMA = pa.schema([("smiles", pa.string()), ("width", pa.int32()), ("vectors", pa.list_(pa.float32()))])


class VectorCache:
    """Vectors by a molecule's SMILES as it was written, since the order of atoms decides their last bits.

    Args:
        root: folder of the whole cache; it is made.
        about: all that decides the vectors: it names a folder inside.

    Raises:
        OutputFolderError: the folder cannot be made.
        LibraryError: a file in it is damaged.
    """

    def __init__(self, root: Path, about: Mapping[str, Any]) -> None:
        self._kept = CacheFolder(root, about, _ABOUT_FILE, _SCHEMA, "vectors")
        self.write = self._kept.write

    def __len__(self) -> int:
        return len(self._kept)

    def look_up(self, molecule: Molecule) -> NDArray[np.float32] | None:
        """What is known of a SMILES, (conformers, D); `None` for other molecules, which may have coordinates."""
        found = self._kept.get(molecule, "width", "vectors") if isinstance(molecule, str) else None
        return None if found is None else np.asarray(found[1], dtype=np.float32).reshape(-1, found[0])

    def add(self, molecule: Molecule, vectors: NDArray[Any]) -> None:
        """Keep what was made (conformers, D) of a SMILES; of other molecules, and of failed ones, nothing."""
        if isinstance(molecule, str) and len(vectors):
            flat = np.asarray(vectors, dtype=np.float32)
            self._kept.add({"smiles": molecule, "width": flat.shape[1], "vectors": flat.ravel()})


def vector_cache_for(where: str, about: Mapping[str, Any]) -> VectorCache | None:
    """The cache that a command's setting (`CacheSettings`) asks for, if it asks for one."""
    root = cache_root(where)
    return None if root is None else VectorCache(root, about)


def made_once(
    molecules: Sequence[Molecule],
    cache: VectorCache | None,
    make: Callable[[list[int]], Iterable[tuple[int, NDArray[Any] | None]]],
) -> list[NDArray[Any] | None]:
    """Vectors (conformers, D) of each molecule; what the cache lacks is made, and kept.

    Args:
        molecules: n of them.
        cache: where vectors are looked up; `None` for none.
        make: gives, of these positions, each with its vectors, `None` where there are none.
    """
    found: list[NDArray[Any] | None] = [None if cache is None else cache.look_up(molecule) for molecule in molecules]
    for position, vectors in make([position for position, each in enumerate(found) if each is None]):
        found[position] = vectors
        if cache is not None and vectors is not None:
            cache.add(molecules[position], vectors)
    if cache is not None:
        cache.write()
    return found
