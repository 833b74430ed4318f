"""Tables of molecules: SMILES and labels in, splits, and a status for every row."""

import csv
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from ..errors import TableError
from ..library.scaffolds import murcko_scaffold

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
_MISSING_WORDS = ("", "na", "n/a", "nan", "none", "null", "-", "?")
PREDICTED = "predicted_"
ROW_REPORT_COLUMNS = ("smiles", "split", "conformer", "error", "note")
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
    """Read a CSV (compressed too) with every cell as the text it is; an empty cell is "".

    Blank lines inside the table are rows; at its end they are not.

    Raises:
        TableError: no such file, not a table, rows longer than the header, or a column name twice.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "skip_blank_lines": False}
            table = pd.read_csv(path, index_col=False, **options)
            header = pd.read_csv(path, header=None, nrows=1, **options).iloc[0].tolist()
    except FileNotFoundError as error:
        raise TableError(f"{path} does not exist") from error
    except pd.errors.ParserWarning as error:
        raise TableError(f"{path} has rows with more cells than the header; remove trailing commas") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, csv.Error) as error:
        raise TableError(f"{path} is no CSV table in UTF-8 ({error}); export it as CSV (UTF-8)") from error
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise TableError(f"{path} has the column {', '.join(repeated)} more than once; rename one")
    filled = np.flatnonzero((table != "").any(axis=1))
    return table.iloc[: filled[-1] + 1 if len(filled) else 0]


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
    require_columns(table, [smiles_column, *targets, *([split_column] if split_column else [])])
    _check_target_names(targets, smiles_column, split_column)
    notes = [""] * len(table)
    labels = np.stack([_parse_labels(table[target], target, notes) for target in targets], axis=1)
    smiles = table[smiles_column].tolist()
    if split_column:
        split = _parse_split(table[split_column], split_column, notes)
    else:
        split = make_split(smiles, split_method, seed)
    unlabelled = np.isnan(labels).all(axis=1)
    for row in np.flatnonzero(unlabelled):
        _note(notes, int(row), "no label")
    split[unlabelled] = UNUSED
    labelled = LabelledTable(smiles, labels, split, notes, list(targets))
    check_parts(labelled)
    return labelled


def _check_target_names(targets: Sequence[str], smiles_column: str, split_column: str | None) -> None:
    """The row report holds labels and predictions side by side, so no name may serve twice."""
    if not targets:
        raise TableError("name at least one target column")
    taken = [*ROW_REPORT_COLUMNS, *targets, *(f"{PREDICTED}{target}" for target in targets)]
    clashing = [name for name in targets if taken.count(name) > 1 or name in (smiles_column, split_column)]
    if clashing:
        raise TableError(f"target {', '.join(sorted(set(clashing)))} clashes with another column; rename it")


def _note(notes: list[str], row: int, text: str) -> None:
    notes[row] = f"{notes[row]}; {text}" if notes[row] else text


def _parse_labels(column: pd.Series, target: str, notes: list[str]) -> NDArray[np.float64]:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, copy=True)
    unusable = ~(np.abs(values) <= np.finfo(np.float32).max)
    missing = column.str.strip().str.lower().isin(_MISSING_WORDS).to_numpy()
    for row in np.flatnonzero(unusable & ~missing):
        _note(notes, int(row), f"label {column.iloc[row]!r} of {target} is no finite number, taken as missing")
    values[unusable] = np.nan
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


def check_parts(table: LabelledTable) -> None:
    """Raise `TableError` where a part of the split is empty or a target has fewer than two training labels."""
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
