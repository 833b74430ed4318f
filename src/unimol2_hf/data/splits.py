"""Training, validation and test part: by scaffold, at random, or as a column says."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from ..errors import TableError
from .scaffolds import murcko_scaffold
from .tables import add_note

TRAIN, VALID, TEST, UNUSED = "train", "valid", "test", ""

_SPLIT_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "valid": VALID,
    "val": VALID,
    "validation": VALID,
    "dev": VALID,
    "test": TEST,
}

SPLIT_METHODS = ("scaffold", "random")


def _parse_split(column: pd.Series, name: str, notes: list[str]) -> NDArray[np.str_]:
    parts = [_SPLIT_NAMES.get(str(value).strip().lower(), UNUSED) for value in column]
    for row, (part, value) in enumerate(zip(parts, column, strict=True)):
        if part == UNUSED:
            add_note(notes, row, f"{name} is {value!r}, not train, valid or test: row unused")
    return np.array(parts, dtype="<U5")


def make_split(smiles: Sequence[str], method: str, seed: int) -> NDArray[np.str_]:
    """An 80/10/10 split of the rows: "random", or "scaffold" (no Bemis-Murcko scaffold in two parts)."""
    if method not in SPLIT_METHODS:
        raise TableError(f"unknown split {method!r}; use one of {', '.join(SPLIT_METHODS)}")
    if len(smiles) < 10:
        raise TableError(f"{len(smiles)} molecules are too few to split; give a split column")
    groups = [_scaffold(text) for text in smiles] if method == "scaffold" else list(range(len(smiles)))
    names, sizes = np.unique(np.array(groups), return_counts=True)
    parts = _assign_groups(sizes, len(smiles) // 10, seed)
    split = np.array(parts, dtype="<U5")[np.searchsorted(names, np.array(groups))]
    if set(split) != {TRAIN, VALID, TEST}:
        raise TableError(
            f"{len(names)} scaffolds, the largest with {sizes.max()} of {len(smiles)} molecules, leave nothing "
            "to hold out; use the random split or a split column"
        )
    return split


def _assign_groups(sizes: NDArray[np.intp], room: int, seed: int) -> list[str]:
    """A part for each group: in random order, what fits goes to test, then to valid, the rest to train."""
    parts = [TRAIN] * len(sizes)
    left = {TEST: room, VALID: room}
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        fitting = next((part for part in left if sizes[group] <= left[part]), None)
        if fitting is not None:
            parts[group] = fitting
            left[fitting] -= int(sizes[group])
    return parts


def _scaffold(smiles: str) -> str:
    """Bemis-Murcko scaffold; a molecule without rings, or unreadable, is its own group."""
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        scaffold = "" if molecule is None else murcko_scaffold(molecule)
    return scaffold or f"acyclic {smiles}"
