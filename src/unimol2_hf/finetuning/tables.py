"""Tables of molecules: SMILES and labels in, splits, and a status for every row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

from ..errors import TableError

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


@dataclass
class LabelledTable:
    """Molecules with labels and a split, one entry for every row of the file.

    Attributes:
        smiles: (n,) strings; a missing cell is "".
        labels: (n, targets) float64, NaN where missing.
        split: (n,) of "train", "valid", "test" or "" (unused).
        notes: (n,) what was odd about a row's labels or split; empty when nothing was.
        targets: names of the label columns.
    """

    smiles: list[str]
    labels: NDArray[np.float64]
    split: NDArray[np.str_]
    notes: list[str]
    targets: list[str]

    def rows_of(self, split: str) -> NDArray[np.intp]:
        return np.flatnonzero(self.split == split)


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV (gz too) with every cell as text; empty cells are missing.

    Raises:
        TableError: no such file, or not a table.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=True)
    except FileNotFoundError as error:
        raise TableError(f"{path} does not exist") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise TableError(f"{path} is no CSV table: {error}") from error


def require_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise `TableError` that names the missing columns and the ones there are."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise TableError(f"the table has no column {', '.join(missing)}; it has: {', '.join(map(str, table.columns))}")


def read_labelled_table(
    path: Path,
    smiles_column: str,
    targets: Sequence[str],
    split_column: str | None = None,
    split_method: str = "scaffold",
    seed: int = 0,
) -> LabelledTable:
    """Read molecules, labels and split; what is odd about a row is noted, never dropped.

    Raises:
        TableError: a column is missing, a target has no label or only one value in the training part, or the split
            lacks a training or a test part.
    """
    table = read_table(path)
    if not targets:
        raise TableError("name at least one target column")
    require_columns(table, [smiles_column, *targets, *([split_column] if split_column else [])])
    notes = [""] * len(table)
    labels = np.stack([_parse_labels(table[target], target, notes) for target in targets], axis=1)
    smiles = table[smiles_column].fillna("").tolist()
    if split_column:
        split = _parse_split(table[split_column], split_column, notes)
    else:
        split = make_split(smiles, split_method, seed)
    unlabelled = np.isnan(labels).all(axis=1)
    for row in np.flatnonzero(unlabelled):
        _note(notes, int(row), "no label")
    split[unlabelled] = UNUSED
    labelled = LabelledTable(smiles, labels, split, notes, list(targets))
    _check_parts(labelled)
    return labelled


def _note(notes: list[str], row: int, text: str) -> None:
    notes[row] = f"{notes[row]}; {text}" if notes[row] else text


def _parse_labels(column: pd.Series, target: str, notes: list[str]) -> NDArray[np.float64]:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, copy=True)
    unreadable = column.notna().to_numpy() & ~np.isfinite(values)
    for row in np.flatnonzero(unreadable):
        _note(notes, int(row), f"label {column.iloc[row]!r} of {target} is no finite number, taken as missing")
    values[~np.isfinite(values)] = np.nan
    return values


def _parse_split(column: pd.Series, name: str, notes: list[str]) -> NDArray[np.str_]:
    parts = [_SPLIT_NAMES.get(str(value).strip().lower(), UNUSED) for value in column]
    for row, (part, value) in enumerate(zip(parts, column, strict=True)):
        if part == UNUSED:
            _note(notes, row, f"{name} is {value!r}, not train, valid or test: row unused")
    return np.array(parts, dtype="<U5")


def make_split(smiles: Sequence[str], method: str, seed: int) -> NDArray[np.str_]:
    """An 80/10/10 split of the rows: "random", or "scaffold" (no Bemis-Murcko scaffold in two parts)."""
    if method not in SPLIT_METHODS:
        raise TableError(f"unknown split {method!r}; use one of {', '.join(SPLIT_METHODS)}")
    if len(smiles) < 10:
        raise TableError(f"{len(smiles)} molecules are too few to split; give a split column")
    rows = np.arange(len(smiles))
    groups = np.array([_scaffold(text) for text in smiles]) if method == "scaffold" else None
    splitter = GroupShuffleSplit if method == "scaffold" else ShuffleSplit
    train, rest = next(splitter(1, test_size=0.2, random_state=seed).split(rows, groups=groups))
    rest_groups = None if groups is None else groups[rest]
    valid, test = next(splitter(1, test_size=0.5, random_state=seed).split(rest, groups=rest_groups))
    split = np.full(len(smiles), UNUSED, dtype="<U5")
    split[train], split[rest[valid]], split[rest[test]] = TRAIN, VALID, TEST
    return split


def _scaffold(smiles: str) -> str:
    """Bemis-Murcko scaffold; a molecule without rings, or unreadable, is its own group."""
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        scaffold = "" if molecule is None else str(MurckoScaffold.MurckoScaffoldSmiles(mol=molecule))
    return scaffold or f"acyclic {smiles}"


def _check_parts(table: LabelledTable) -> None:
    for part in (TRAIN, VALID, TEST):
        if not len(table.rows_of(part)):
            raise TableError(f"no labelled row in the {part} part of the split")
    labels = table.labels[table.rows_of(TRAIN)]
    for number, target in enumerate(table.targets):
        values = np.unique(labels[~np.isnan(labels[:, number]), number])
        if len(values) < 2:
            raise TableError(
                f"target {target} has {len(values)} different labels in the training part; at least 2 are needed"
            )
