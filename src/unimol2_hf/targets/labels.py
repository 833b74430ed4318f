"""Labels of a table: read, checked, and with a note for whatever was odd about a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from .kinds import read_target
from .predictions import PREDICTED

ROW_REPORT_COLUMNS = ("smiles", "split", "conformer", "error", "error_code", "note")

FloatArray = NDArray[np.float64]


@dataclass
class LabelledTable:
    """Molecules with labels and a split, one entry for every row of the file.

    Attributes:
        smiles: (n,) strings; a missing cell is "".
        labels: (n, targets) float64: values, 0 or 1, indices of classes; NaN where missing.
        split: (n,) of "train", "valid", "test" or "" (unused).
        notes: (n,) what was odd about a row's labels or split; empty when nothing was.
        targets: as `UniMol2Config.targets`, without their scale.
        left_out: of each target the texts that were no labels, by row.
        extra_features: columns (n,) of numbers that the model is to read besides the molecule, by name.
        row_weights: (n,) what a row counts in training; None where all count the same.
    """

    smiles: list[str]
    labels: FloatArray
    split: NDArray[np.str_]
    notes: list[str]
    targets: list[dict[str, Any]]
    left_out: dict[str, dict[int, str]] = field(default_factory=dict)
    extra_features: dict[str, FloatArray] = field(default_factory=dict)
    row_weights: FloatArray | None = None

    @property
    def target_names(self) -> list[str]:
        return [str(target["name"]) for target in self.targets]

    def rows_of(self, split: str) -> NDArray[np.intp]:
        return np.flatnonzero(self.split == split)


def read_labelled_table(
    path: Path,
    smiles_column: str,
    targets: Sequence[str],
    split_column: str | None = None,
    split_method: str = "scaffold",
    seed: int = 0,
    kinds: Mapping[str, str] | None = None,
    feature_columns: Sequence[str] = (),
    weight_column: str | None = None,
) -> LabelledTable:
    """Read molecules, labels and split; what is odd about a row is noted, never dropped.

    Args:
        kinds: of the targets for which it is not to be guessed.
        feature_columns: numbers that the model is to read besides the molecule; NaN where there is none.
        weight_column: what a row counts in training.

    Raises:
        TableError: a column is missing, a target has no label or only one value in the training part, labels are
            qualified numbers, or the split lacks a training or a test part.
    """
    table = read_table(path)
    others = [each for each in (split_column, weight_column, *feature_columns) if each]
    require_columns(table, [smiles_column, *targets, *others])
    _check_target_names(targets, [smiles_column, *others])
    notes = [""] * len(table)
    columns = [read_target(table[name].tolist(), name, (kinds or {}).get(name)) for name in targets]
    for column in columns:
        for row, text in column.left_out.items():
            add_note(notes, row, f"label {text!r} of {column.target['name']} is no number, taken as missing")
    smiles = table[smiles_column].tolist()
    if split_column:
        split = _parse_split(table[split_column], split_column, notes)
    else:
        split = make_split(smiles, split_method, seed)
    labelled = LabelledTable(
        smiles,
        np.stack([column.labels for column in columns], axis=1),
        split,
        notes,
        [column.target for column in columns],
        {str(column.target["name"]): column.left_out for column in columns if column.left_out},
        {name: _numbers(table[name], name) for name in feature_columns},
        None if weight_column is None else _weights(table[weight_column], weight_column),
    )
    _take_out_of_use(labelled)
    check_parts(labelled)
    return labelled


def _take_out_of_use(table: LabelledTable) -> None:
    """Rows without a label."""
    unlabelled = np.isnan(table.labels).all(axis=1)
    for row in np.flatnonzero(unlabelled):
        add_note(table.notes, int(row), "no label")
    table.split[unlabelled] = UNUSED


def _check_target_names(targets: Sequence[str], others: Sequence[str]) -> None:
    """The row report holds labels and predictions side by side, so no name may serve twice."""
    if not targets:
        raise TableError("name at least one target column")
    taken = [*ROW_REPORT_COLUMNS, *targets, *(f"{PREDICTED}{target}" for target in targets)]
    clashing = [name for name in targets if taken.count(name) > 1 or name in others]
    if clashing:
        raise TableError(f"target {', '.join(sorted(set(clashing)))} clashes with another column; rename it")


def _numbers(column: pd.Series, name: str) -> FloatArray:
    """The finite numbers of a column, NaN where there is none."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, copy=True)
    values[~(np.abs(values) <= np.finfo(np.float32).max)] = np.nan
    if np.isnan(values).all():
        raise TableError(f"column {name} has no number; name a column of numbers")
    return values


def _weights(column: pd.Series, name: str) -> FloatArray:
    values = _numbers(column, name)
    wrong = np.flatnonzero(~(values >= 0))
    if len(wrong):
        text = column.iloc[wrong[0]]
        raise TableError(
            f"weight {text!r} of row {wrong[0]} in {name} is no number of 0 or more ({len(wrong)} such rows)"
        )
    if not values.any():
        raise TableError(f"all weights in {name} are 0; nothing would be learned")
    return values


def check_parts(table: LabelledTable) -> None:
    """Raise `TableError` where a part of the split is empty or a target has fewer than two training labels."""
    for part in (TRAIN, VALID, TEST):
        if not len(table.rows_of(part)):
            raise TableError(f"no labelled row in the {part} part of the split")
    labels = table.labels[table.rows_of(TRAIN)]
    for number, target in enumerate(table.target_names):
        values = np.unique(labels[~np.isnan(labels[:, number]), number])
        if len(values) < 2:
            raise TableError(
                f"target {target} has {len(values)} different labels in the training part; at least 2 are needed"
            )
