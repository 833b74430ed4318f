"""Labels of a table: read, checked, and with a note for whatever was odd about a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..data.splits import (
    TEST,
    TRAIN,
    UNUSED,
    VALID,
    _parse_split,
    make_split,
)
from ..data.tables import add_note, read_table, require_columns
from ..errors import TableError

_MISSING_WORDS = ("", "na", "n/a", "nan", "none", "null", "-", "?")
PREDICTED = "predicted_"
ROW_REPORT_COLUMNS = ("smiles", "split", "conformer", "error", "error_code", "note")


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
        add_note(notes, int(row), "no label")
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


def _parse_labels(column: pd.Series, target: str, notes: list[str]) -> NDArray[np.float64]:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, copy=True)
    unusable = ~(np.abs(values) <= np.finfo(np.float32).max)
    missing = column.str.strip().str.lower().isin(_MISSING_WORDS).to_numpy()
    for row in np.flatnonzero(unusable & ~missing):
        add_note(notes, int(row), f"label {column.iloc[row]!r} of {target} is no finite number, taken as missing")
    values[unusable] = np.nan
    return values


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
