"""Labels of a table: read, checked, and with a note for whatever was odd about a row."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..configuration_unimol2 import REGRESSION
from ..data.identity import first_rows
from ..data.splits import TEST, TRAIN, UNUSED, VALID, Parts
from ..data.tables import MoleculeTable, add_note, require_columns
from ..errors import MoleculeError, TableError
from ..molecules import Molecule
from .kinds import read_target
from .predictions import PREDICTED, prediction_columns

ROW_REPORT_COLUMNS = ("smiles", "split", "fold", "conformer", "error", "error_code", "note")
# In standard deviations of a column: two measurements of one molecule that differ by more contradict each other.
CONTRADICTION = 0.25

FloatArray = NDArray[np.float64]


@dataclass
class LabelledTable:
    """Molecules with labels, one entry for every row of the source.

    Attributes:
        smiles: (n,) strings; a missing cell is "".
        molecules: (n,) what the featurizer gets.
        labels: (n, targets) float64: values, 0 or 1, indices of classes; NaN where missing.
        split: (n,) of "train", "valid", "test" or "" (unused).
        notes: (n,) what was odd about a row's labels or split; empty when nothing was.
        targets: as `UniMol2Config.targets`, without their scale.
        left_out: of each target the texts that were no labels, by row.
        extra_features: columns (n,) of numbers that the model is to read besides the molecule, by name.
        row_weights: (n,) what a row counts in training; None where all count the same.
        parts: of the split that must have rows.
    """

    smiles: list[str]
    molecules: list[Molecule]
    labels: FloatArray
    split: Parts
    notes: list[str]
    targets: list[dict[str, Any]]
    left_out: dict[str, dict[int, str]] = field(default_factory=dict)
    extra_features: dict[str, FloatArray] = field(default_factory=dict)
    row_weights: FloatArray | None = None
    parts: tuple[str, ...] = (TRAIN, VALID, TEST)

    @property
    def target_names(self) -> list[str]:
        return [str(target["name"]) for target in self.targets]

    def rows_of(self, split: str) -> NDArray[np.intp]:
        return np.flatnonzero(self.split == split)

    def use(self, split: Parts) -> None:
        """Take a split; a row without a label stays unused.

        Raises:
            TableError: a part is empty, or a target has fewer than two different training labels.
        """
        unlabelled = np.isnan(self.labels).all(axis=1)
        for row in np.flatnonzero(unlabelled):
            if not self.notes[row]:
                add_note(self.notes, int(row), "no label")
        self.split = np.where(unlabelled, UNUSED, split)
        check_parts(self)


def label_table(
    table: MoleculeTable,
    targets: Sequence[str],
    kinds: Mapping[str, str] | None = None,
    feature_columns: Sequence[str] = (),
    weight_column: str | None = None,
    reserved: Sequence[str] = (),
) -> LabelledTable:
    """Read the labels of a table; what is odd about a row is noted, never dropped.

    Args:
        table: with all its columns.
        targets: columns with labels.
        kinds: of the targets for which it is not to be guessed.
        feature_columns: numbers that the model is to read besides the molecule; NaN where there is none.
        weight_column: what a row counts in training.
        reserved: columns of another use.

    Returns:
        The labels, without a split.

    Raises:
        TableError: a column is missing, or labels are qualified numbers.
    """
    cells = table.cells
    others = [each for each in (weight_column, *feature_columns) if each]
    require_columns(cells, [*targets, *others])
    _check_target_names(targets, [*others, *reserved])
    if not len(table):
        raise TableError("the table has no rows")
    notes = [""] * len(table)
    # Of a row with a cell too many nobody knows which is which.
    unread = np.array([isinstance(molecule, MoleculeError) for molecule in table.molecules])
    texts = {name: np.where(unread, "", cells[name]).tolist() for name in targets}
    columns = [read_target(texts[name], name, (kinds or {}).get(name)) for name in targets]
    for column in columns:
        for row, text in column.left_out.items():
            add_note(notes, row, f"label {text!r} of {column.target['name']} is no number, taken as missing")
    _check_prediction_names([column.target for column in columns])
    return LabelledTable(
        table.smiles,
        table.molecules,
        np.stack([column.labels for column in columns], axis=1),
        np.full(len(table), UNUSED, dtype="<U5"),
        notes,
        [column.target for column in columns],
        {str(column.target["name"]): column.left_out for column in columns if column.left_out},
        {name: _numbers(cells[name], name) for name in feature_columns},
        None if weight_column is None else _weights(cells[weight_column], weight_column),
    )


@dataclass(frozen=True)
class Duplicates:
    """What a table repeats.

    Attributes:
        rows: that have a molecule (and extra numbers) of an earlier row.
        contradictions: of each target the molecules whose labels contradict each other.
    """

    rows: int
    contradictions: dict[str, int]


def resolve_duplicates(table: LabelledTable, names: Sequence[str], how: str) -> Duplicates:
    """Note the rows of one molecule, and make one row of them where that is asked for.

    Labels contradict each other where they are different classes, or numbers further apart than a quarter of the
    column's standard deviation.

    Args:
        table: its labels are changed.
        names: identity of each row.
        how: "keep" leaves all rows; "average" gives the first row the mean, of classes the most frequent one (none
            where two are as frequent); "drop" does so, but contradictory labels count as missing.
    """
    extra = np.array(list(table.extra_features.values())).T if table.extra_features else np.empty((len(names), 0))
    first = np.array(first_rows(f"{name} {values.tolist()}" for name, values in zip(names, extra, strict=True)))
    repeated = np.flatnonzero(first != np.arange(len(first)))
    spread = np.array(
        [_tolerance(target, labels) for target, labels in zip(table.targets, table.labels.T, strict=True)]
    )
    contradictions = dict.fromkeys(table.target_names, 0)
    for leader in np.unique(first[repeated]):
        rows = np.flatnonzero(first == leader)
        labels = table.labels[rows]
        present = ~np.isnan(labels).all(axis=0)
        against = np.zeros(labels.shape[1], dtype=bool)
        against[present] = _ranges(labels[:, present]) > spread[present]
        for name, contradicts in zip(table.target_names, against, strict=True):
            contradictions[name] += bool(contradicts)
        _note_duplicates(table, rows, against, how)
        if how != "keep":
            table.labels[rows[1:]] = np.nan
            table.labels[leader] = [
                _merged(target, column) for target, column in zip(table.targets, labels.T, strict=True)
            ]
            if how == "drop":
                table.labels[leader, against] = np.nan
    return Duplicates(len(repeated), {name: count for name, count in contradictions.items() if count})


def _note_duplicates(table: LabelledTable, rows: NDArray[np.intp], against: NDArray[np.bool_], how: str) -> None:
    names = ", ".join(np.array(table.target_names)[against])
    told = f", and contradicts it in {names}" if names else ""
    merged = "" if how == "keep" else "; its labels went there"
    for row in rows[1:]:
        add_note(table.notes, int(row), f"the same molecule as row {rows[0]}{told}{merged}")


def _tolerance(target: Mapping[str, Any], labels: FloatArray) -> float:
    present = labels[~np.isnan(labels)]
    return CONTRADICTION * float(present.std()) if target["kind"] == REGRESSION and len(present) else 0.0


def _ranges(labels: FloatArray) -> FloatArray:
    return np.asarray(np.nanmax(labels, axis=0) - np.nanmin(labels, axis=0))


def _merged(target: Mapping[str, Any], labels: FloatArray) -> float:
    present = labels[~np.isnan(labels)]
    if not len(present):
        return np.nan
    if target["kind"] == REGRESSION:
        return float(present.mean())
    classes, counts = np.unique(present, return_counts=True)
    frequent = classes[counts == counts.max()]
    return float(frequent[0]) if len(frequent) == 1 else np.nan


def _check_target_names(targets: Sequence[str], others: Sequence[str]) -> None:
    """The row report holds labels and predictions side by side, so no name may serve twice."""
    if not targets:
        raise TableError("name at least one target column")
    taken = [*ROW_REPORT_COLUMNS, *targets, *(f"{PREDICTED}{target}" for target in targets)]
    clashing = [name for name in targets if taken.count(name) > 1 or name in others]
    if clashing:
        raise TableError(f"target {', '.join(sorted(set(clashing)))} clashes with another column; rename it")


def _check_prediction_names(targets: Sequence[dict[str, Any]]) -> None:
    """`x_lower` beside `x`, or a class named spread, would give two columns of predictions one name."""
    names = [str(target["name"]) for target in targets]
    counts = Counter(prediction_columns(targets, spreads=True, intervals=names))
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise TableError(f"two predictions would be called {twice}; rename a target or a class")


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
    for part in table.parts:
        if not len(table.rows_of(part)):
            raise TableError(f"no labelled row in the {part} part of the split")
    labels = table.labels[table.rows_of(TRAIN)]
    for number, target in enumerate(table.target_names):
        values = np.unique(labels[~np.isnan(labels[:, number]), number])
        if len(values) < 2:
            raise TableError(
                f"target {target} has {len(values)} different labels in the training part; at least 2 are needed"
            )
