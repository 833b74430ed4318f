"""Morgan fingerprints of the training molecules: how near a new molecule is to what a model has seen."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import load_state_dict_from_file, save_torch_state_dict
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from transformers.utils import cached_file

from .errors import ModelError
from .molecules import remove_hydrogens

FINGERPRINTS_FILE = "fingerprints.safetensors"
FINGERPRINT_BYTES = 256
_RADIUS = 2
_TENSOR = "morgan_bits"

BitArray = NDArray[np.uint8]


def morgan_bits(molecule: Chem.Mol | None) -> BitArray:
    """Morgan fingerprint of radius 2 of a molecule's heavy atoms: 2,048 bits, packed into (256,) uint8.

    Zeros for None, a molecule without bonds to read; every molecule sets a bit.

    Raises:
        MoleculeError: the molecule has no heavy atoms, or is a query.
    """
    if molecule is None:
        return np.zeros(FINGERPRINT_BYTES, np.uint8)
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=_RADIUS, fpSize=8 * FINGERPRINT_BYTES)
    return np.packbits(generator.GetFingerprintAsNumPy(remove_hydrogens(molecule)))


def bits_of_all(molecules: Iterable[Chem.Mol | None]) -> BitArray:
    """Fingerprints (n, 256) uint8; see `morgan_bits`."""
    return np.array([morgan_bits(each) for each in molecules], dtype=np.uint8).reshape(-1, FINGERPRINT_BYTES)


def neighbours(bits: BitArray, similarity: float) -> list[NDArray[np.intp]]:
    """For each of n molecules the indices of those at least so similar (Tanimoto), itself included.

    Args:
        bits: (n, 256) uint8; one without a fingerprint has no neighbour but itself.
        similarity: 0 to 1.
    """
    words = np.ascontiguousarray(bits).view(np.uint64)
    sizes = np.bitwise_count(words).sum(1, dtype=np.int32)
    near = []
    for row in range(len(words)):
        found = np.flatnonzero(_similarities(words[row], words, sizes) >= similarity) if sizes[row] else [row]
        near.append(np.asarray(found, dtype=np.intp))
    return near


def _similarities(
    word: NDArray[np.uint64], known: NDArray[np.uint64], sizes: NDArray[np.int32]
) -> NDArray[np.floating[Any]]:
    """Tanimoto similarity of one molecule to all: its overlaps stay in the processor's cache."""
    common = np.bitwise_count(word & known).sum(1, dtype=np.int32)
    similarities: NDArray[np.floating[Any]] = common / (
        int(np.bitwise_count(word).sum(dtype=np.int32)) + sizes - common
    )
    return similarities


def save_fingerprints(folder: str | Path, bits: BitArray) -> None:
    """Write `fingerprints.safetensors` into a model's folder; bits: (n, 256) uint8, see `morgan_bits`."""
    tensor = torch.from_numpy(np.ascontiguousarray(bits))
    save_torch_state_dict({_TENSOR: tensor}, folder, filename_pattern="fingerprints{suffix}.safetensors")


def load_fingerprints(model: str | Path, **hub_kwargs: Any) -> BitArray | None:
    """The fingerprints (n, 256) of the molecules that a model was trained on; None where its folder has none.

    Args:
        model: a folder, or a Hub id.
        **hub_kwargs: `revision`, `cache_dir`, `token`, as `from_pretrained` takes them.

    Raises:
        ModelError: the file is damaged, or of another kind.
    """
    quiet = {f"_raise_exceptions_for_{case}": False for case in ("missing_entries", "connection_errors")}
    path = cached_file(str(model), FINGERPRINTS_FILE, **quiet, **hub_kwargs)
    if path is None:
        return None
    try:
        bits = load_state_dict_from_file(path)[_TENSOR].numpy()
    # A damaged file raises what is an Exception only, of a package that is not imported here.
    except Exception as error:
        raise ModelError(f"{path} is damaged: {error}; fit the model again, or remove the file") from error
    if bits.dtype != np.uint8 or bits.shape[1:] != (FINGERPRINT_BYTES,):
        raise ModelError(
            f"{path} holds {bits.dtype} of shape {bits.shape}, not uint8 of (n, {FINGERPRINT_BYTES}); fit the model "
            "again, or remove the file"
        )
    return bits


def nearest_similarity(queries: BitArray, training: BitArray) -> NDArray[np.float32]:
    """Tanimoto similarity (q,) of each query to the training molecule that is most like it.

    Args:
        queries: (q, 256) uint8, see `morgan_bits`; zeros, a molecule without a fingerprint, give NaN.
        training: (n, 256) uint8; without any, every similarity is NaN.
    """
    words, known = (np.ascontiguousarray(bits).view(np.uint64) for bits in (queries, training))
    sizes = np.bitwise_count(known).sum(1, dtype=np.int32)
    nearest = np.full(len(words), np.nan, dtype=np.float32)
    for row in np.flatnonzero(queries.any(axis=1)) if len(known) else ():
        nearest[row] = _similarities(words[row], known, sizes).max()
    return nearest
