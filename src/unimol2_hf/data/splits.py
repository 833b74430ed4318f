"""Training, validation and test part: by scaffold, cluster, chance, a column's order, or as a column or file says.

The same molecule never lies in two parts.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import TableError
from ..fingerprints import bits_of_all, neighbours
from ..settings_unimol2 import Standardization
from .identity import identities, molecule_of_identity
from .molecule_files import Source
from .scaffolds import murcko_scaffold
from .tables import add_note, read_table, require_columns

TRAIN, VALID, TEST, UNUSED = "train", "valid", "test", ""
Parts = NDArray[np.str_]

_SPLIT_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "valid": VALID,
    "val": VALID,
    "validation": VALID,
    "dev": VALID,
    "test": TEST,
}
_NONE = -1
# Butina's clusters: at this Tanimoto distance of ECFP4 two molecules are neighbours.
CLUSTER_DISTANCE = 0.6
MOST_CLUSTERED = 30_000
_FEWEST = 10


def split_by_column(column: pd.Series, notes: list[str]) -> Parts:
    """The part that each cell names; a row whose cell names none is unused, and noted."""
    parts = [_SPLIT_NAMES.get(str(value).strip().lower(), UNUSED) for value in column]
    for row, (part, value) in enumerate(zip(parts, column, strict=True)):
        if part == UNUSED:
            add_note(notes, row, f"{column.name} is {value!r}, not train, valid or test: row unused")
    return np.array(parts, dtype="<U5")


def split_by_file(
    source: Source,
    column: str,
    smiles_column: str,
    names: Sequence[str],
    notes: list[str],
    standardize: Standardization = "none",
) -> Parts:
    """The part in which a file lists each molecule, however it is written; a molecule not listed is unused, and noted.

    A molecule that is listed in several parts is in the last of them.

    Raises:
        TableError: the file cannot be read, or has no such column.
    """
    table = read_table(source, smiles_column)
    require_columns(table.cells, [column])
    listed_names = identities(table.molecules, standardize)
    parts = split_by_column(table.cells[column], [""] * len(table))
    listed = _last_parts(listed_names, parts)
    for row, name in enumerate(names):
        if name not in listed:
            add_note(notes, row, f"not in {source}: row unused")
    return np.array([listed.get(name, UNUSED) for name in names], dtype="<U5")


def make_split(
    names: Sequence[str], method: str, seed: int, order: pd.Series | None = None, folds: int = 0, fold: int = 0
) -> Parts:
    """Split rows 80/10/10, or so that a fold is the test part and the next one the validation part.

    Args:
        names: identity of each row (`identities`).
        method: "random"; "scaffold", no Bemis-Murcko scaffold in two parts; "cluster", no Butina cluster (Tanimoto
            distance 0.6 of ECFP4) in two.
        seed: of the order in which groups are dealt out.
        order: a column to split by instead, from its least values (training) to its greatest (test).
        folds: 0 for 80/10/10.
        fold: which one is the test part.

    Raises:
        TableError: too few molecules or groups, or too many to cluster.
    """
    if len(set(names)) < max(_FEWEST, folds):
        raise TableError(f"{len(set(names))} molecules are too few to split; give a split column")
    if order is not None:
        return _split_in_order(names, order, folds, fold)
    groups = groups_of(names, method)
    if folds:
        return _parts_of_folds(deal_folds(groups, folds, seed), folds, fold)
    sizes = np.bincount(groups)
    split = np.array(_assign_groups(sizes, len(names) // 10, seed), dtype="<U5")[groups]
    if set(split) != {TRAIN, VALID, TEST}:
        raise TableError(
            f"{len(sizes)} groups by {method}, the largest with {sizes.max()} of {len(names)} molecules, leave nothing "
            "to hold out; use the random split or a split column"
        )
    return split


def groups_of(names: Sequence[str], method: str) -> NDArray[np.intp]:
    """The group of each row, which never lies in two parts: its molecule, scaffold or cluster (see `make_split`).

    Raises:
        TableError: too many molecules to cluster.
    """
    return _groups(tuple(names), method)


@lru_cache(maxsize=1)
def _groups(names: tuple[str, ...], method: str) -> NDArray[np.intp]:
    """Kept, since a run on folds asks twice, and clusters take minutes."""
    groups: NDArray[np.intp] = np.unique(np.array(_GROUPERS[method](names)), return_inverse=True)[1]
    return groups


def deal_folds(groups: NDArray[np.intp], folds: int, seed: int) -> NDArray[np.intp]:
    """A fold for each row, of about equal size, no group in two.

    Raises:
        TableError: there are fewer groups than folds.
    """
    different, dense = np.unique(groups, return_inverse=True)
    if len(different) < folds:
        raise TableError(
            f"{len(different)} groups of molecules do not make {folds} folds; use fewer, or the random split"
        )
    dealt: NDArray[np.intp] = _dealt_folds(np.bincount(dense), folds, seed)[dense]
    return dealt


def one_part_a_molecule(split: Parts, names: Sequence[str], notes: list[str]) -> int:
    """Leave out of training (or validation) what a user's own split also has in a later part; returns how many rows."""
    latest = _last_parts(names, split)
    count = 0
    for row, name in enumerate(names):
        if split[row] != UNUSED and split[row] != latest[name]:
            split[row] = UNUSED
            add_note(notes, row, f"the same molecule is in the {latest[name]} part: row unused")
            count += 1
    return count


def _last_parts(names: Sequence[str], split: Parts) -> dict[str, str]:
    """Of each molecule that is used the last part in which it is: test, validation, training."""
    ranks = {TRAIN: 0, VALID: 1, TEST: 2}
    last: dict[str, str] = {}
    for name, part in zip(names, map(str, split), strict=True):
        if part != UNUSED and ranks[part] >= ranks[last.get(name, TRAIN)]:
            last[name] = part
    return last


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


def _dealt_folds(sizes: NDArray[np.intp], folds: int, seed: int) -> NDArray[np.intp]:
    """A fold for each group: from the largest on, like ones in random order, each to the fold with fewest rows."""
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    rows, dealt = np.zeros(folds, dtype=np.intp), np.zeros(len(sizes), dtype=np.intp)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        dealt[group] = rows.argmin()
        rows[dealt[group]] += sizes[group]
    return dealt


def _parts_of_folds(numbers: NDArray[np.intp], folds: int, fold: int) -> Parts:
    parts = np.full(len(numbers), TRAIN, dtype="<U5")
    parts[numbers == fold] = TEST
    parts[numbers == (fold + 1) % folds] = VALID
    parts[numbers == _NONE] = UNUSED
    return parts


def _split_in_order(names: Sequence[str], order: pd.Series, folds: int, fold: int) -> Parts:
    """Rows by their values; a molecule stands where it comes first, rows without a value are unused."""
    values = _comparable(order)
    first = values.groupby(np.array(names, dtype=object)).transform("min")
    ranks = first.rank(method="first").to_numpy() - 1
    present = values.notna().to_numpy()
    groups = np.array(names, dtype=object)
    # All rows of a molecule with the first of them.
    lowest = pd.Series(ranks).groupby(groups).transform("min").to_numpy()
    share = lowest / max(1, int(present.sum()))
    if folds:
        numbers = np.where(present, np.floor(np.nan_to_num(share) * folds), _NONE).astype(np.intp)
        return _parts_of_folds(numbers, folds, fold)
    parts = np.full(len(names), UNUSED, dtype="<U5")
    for part, low, high in ((TRAIN, 0.0, 0.8), (VALID, 0.8, 0.9), (TEST, 0.9, 1.0)):
        parts[present & (share >= low) & (share < high)] = part
    return parts


def _comparable(column: pd.Series) -> pd.Series:
    """Numbers or points in time, as numbers; NaN for empty cells.

    Raises:
        TableError: the cells are neither.
    """
    filled = column.astype(str).str.strip().ne("")
    numbers = pd.to_numeric(column.where(filled), errors="coerce")
    if numbers[filled].notna().all() and filled.any():
        return numbers.astype(float)
    times = pd.to_datetime(column.where(filled), errors="coerce", format="mixed", utc=True)
    if times[filled].notna().all() and filled.any():
        return (times - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    wrong = column[filled & times.isna()]
    told = f"e.g. {wrong.iloc[0]!r} in row {wrong.index[0]}" if len(wrong) else "it is empty"
    raise TableError(f"the rows cannot be ordered by {column.name}: it needs numbers or dates ({told})")


def _scaffold_groups(names: Sequence[str]) -> list[str]:
    """Bemis-Murcko scaffold; a molecule without rings, or without bonds, is its own group."""
    return [_scaffold(name) or f"acyclic {name}" for name in names]


def _scaffold(name: str) -> str:
    molecule = molecule_of_identity(name)
    return "" if molecule is None else murcko_scaffold(molecule)


def _cluster_groups(names: Sequence[str]) -> list[int]:
    """Butina's clusters (J. Chem. Inf. Comput. Sci. 1999, 39, 747): the molecule with most neighbours, they, and on."""
    different, positions = np.unique(np.array(names, dtype=object), return_inverse=True)
    if len(different) > MOST_CLUSTERED:
        raise TableError(
            f"{len(different):,} molecules are too many to cluster (at most {MOST_CLUSTERED:,}); split by scaffold"
        )
    near = neighbours(bits_of_all([molecule_of_identity(name) for name in different]), 1 - CLUSTER_DISTANCE)
    clusters = np.full(len(different), _NONE, dtype=np.intp)
    for center in sorted(range(len(different)), key=lambda each: (-len(near[each]), -each)):
        if clusters[center] == _NONE:
            members = near[center]
            clusters[members[clusters[members] == _NONE]] = center
            clusters[center] = center
    return [int(clusters[position]) for position in positions]


_GROUPERS: dict[str, Callable[[Sequence[str]], Sequence[Any]]] = {
    "random": list,
    "scaffold": _scaffold_groups,
    "cluster": _cluster_groups,
}
SPLIT_METHODS = tuple(_GROUPERS)
