"""Labels of a table: read or refused with their rows; what is odd about a row is noted."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from unimol2_hf import MoleculeError, TableError
from unimol2_hf.data.tables import MoleculeTable, read_table
from unimol2_hf.targets.labels import LabelledTable, label_table, resolve_duplicates


def table_of(**columns: Any) -> MoleculeTable:
    return read_table(pd.DataFrame(columns))


def parts(*counts: int) -> Any:
    return np.repeat(["train", "valid", "test"], counts)


@pytest.mark.parametrize(
    ("columns", "targets", "message"),
    [
        ({}, ["y"], "no column y; it has: smiles"),
        ({"y": [1] * 20}, ["y"], "target y has 1 different labels"),
        ({"y": [None] * 20}, ["y"], "no labelled row in the train part"),
        ({"y": range(20)}, [], "at least one target"),
        ({"y": range(20)}, ["y", "y"], "target y clashes"),
        ({"y": range(20)}, ["smiles"], "target smiles clashes"),
        ({"error": range(20)}, ["error"], "target error clashes"),
        ({"y": range(20), "predicted_y": range(20)}, ["y", "predicted_y"], "clashes"),
    ],
)
def test_unusable_tables_are_named(columns: dict[str, Any], targets: list[str], message: str) -> None:
    table = table_of(smiles=["C" * (n + 1) for n in range(20)], **columns)
    with pytest.raises(TableError, match=message):
        label_table(table, targets).use(parts(12, 4, 4))


def test_a_split_without_test_is_refused() -> None:
    labelled = label_table(table_of(smiles=["C"] * 4, y=range(4)), ["y"])
    with pytest.raises(TableError, match="no labelled row in the test part"):
        labelled.use(parts(3, 1, 0))


@pytest.mark.parametrize("text", ["inf", "1e40", ">10", "3.78 nM", "3.7 ± 0.1", "~5", "1,5"])
def test_labels_that_are_no_plain_numbers_are_refused_with_their_rows(text: str) -> None:
    table = table_of(smiles=["C"] * 5, y=["1", "2", text, "3", text])
    with pytest.raises(TableError, match=rf"2 of 5 labels of y .*{re.escape(text)}' in row 2 \(rows 2, 4\)"):
        label_table(table, ["y"])


def test_a_row_that_cannot_be_read_has_no_label(tmp_path: Path) -> None:
    """Nobody knows which of its cells is which."""
    (tmp_path / "t.csv").write_text("smiles,y,z\nCC,1,2\nCCC,>5,7,8\nC,3,4\nO,5,6\n")
    table = read_table(tmp_path / "t.csv")
    assert isinstance(table.molecules[1], MoleculeError)
    labels = label_table(table, ["y", "z"]).labels
    np.testing.assert_array_equal(labels, [[1, 2], [np.nan, np.nan], [3, 4], [5, 6]])


class TestDuplicates:
    """Six rows, of which 0, 2, 3 are one molecule and 1, 5 another."""

    names = ("a", "b", "a", "a", "c", "b")

    def labelled(self, **columns: Any) -> LabelledTable:
        return label_table(table_of(smiles=["C"] * 6, **columns), list(columns))

    def test_keep_notes_them(self) -> None:
        table = self.labelled(y=[1.0, 5.0, 1.1, 1.0, 9.0, 9.0])
        found = resolve_duplicates(table, self.names, "keep")
        assert (found.rows, found.contradictions) == (3, {"y": 1})
        assert table.notes == [
            "", "", "the same molecule as row 0", "the same molecule as row 0", "",
            "the same molecule as row 1, and contradicts it in y",
        ]  # fmt: skip
        np.testing.assert_array_equal(table.labels[:, 0], [1.0, 5.0, 1.1, 1.0, 9.0, 9.0])

    def test_average(self) -> None:
        table = self.labelled(y=[1.0, 5.0, 1.3, None, 9.0, 9.0], kind=["x", "y", "x", "z", "z", "x"])
        found = resolve_duplicates(table, self.names, "average")
        assert found.contradictions == {"y": 1, "kind": 2}
        nan = np.nan
        # Of classes the most frequent one, none where two are as frequent.
        np.testing.assert_allclose(table.labels[:, 0], [1.15, 7.0, nan, nan, 9.0, nan])
        np.testing.assert_array_equal(table.labels[:, 1], [0, nan, nan, nan, 2, nan])

    def test_drop_leaves_out_what_is_contradictory(self) -> None:
        table = self.labelled(y=[1.0, 5.0, 1.3, None, 9.0, 9.0], kind=["x", "y", "x", "z", "z", "y"])
        resolve_duplicates(table, self.names, "drop")
        nan = np.nan
        np.testing.assert_allclose(table.labels[:, 0], [1.15, nan, nan, nan, 9.0, nan])
        np.testing.assert_array_equal(table.labels[:, 1], [nan, 1, nan, nan, 2, nan])

    def test_another_assay_condition_is_no_duplicate(self) -> None:
        table = table_of(smiles=["C"] * 6, y=[1.0, 2, 3, 4, 5, 6], ph=["7", "7", "5", "7", "7", "5"])
        labelled = label_table(table, ["y"], feature_columns=["ph"])
        assert resolve_duplicates(labelled, self.names, "average").rows == 1
        np.testing.assert_array_equal(labelled.labels[:, 0], [2.5, 2, 3, np.nan, 5, 6])

    def test_rows_that_were_merged_are_unused(self) -> None:
        table = self.labelled(y=[1.0, 5.0, 1.3, 2.0, 9.0, 9.0])
        resolve_duplicates(table, ("a", "b", "a", "c", "d", "e"), "average")
        table.use(np.array(["train", "train", "train", "train", "valid", "test"]))
        assert table.split.tolist() == ["train", "train", "", "train", "valid", "test"]
        assert table.notes[2] == "the same molecule as row 0; its labels went there"
