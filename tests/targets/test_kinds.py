"""What a column of labels is taken for."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimol2_hf import SettingsError, TableError
from unimol2_hf.targets.kinds import describe_target, kinds_in, read_target

NAN = float("nan")


@pytest.mark.parametrize(
    ("texts", "kind", "classes", "labels"),
    [
        (["1.5", "-1.0", "", "3"], "regression", None, [1.5, -1.0, NAN, 3.0]),
        (["3", "4", "5", "NA"], "regression", None, [3.0, 4.0, 5.0, NAN]),
        (["0", "1", "", "1.0"], "binary", ["0", "1"], [0.0, 1.0, NAN, 1.0]),
        (["2", "-1"], "binary", ["-1", "2"], [1.0, 0.0]),
        (["True", "false", "TRUE"], "binary", ["false", "True"], [1.0, 0.0, 1.0]),
        (["Yes", "no"], "binary", ["no", "Yes"], [1.0, 0.0]),
        (["active", "inactive"], "binary", ["inactive", "active"], [1.0, 0.0]),
        (["toxic", "nontoxic"], "binary", ["nontoxic", "toxic"], [1.0, 0.0]),
        (["positive", "negative"], "binary", ["negative", "positive"], [1.0, 0.0]),
        (["gas", "solid", "?", "liquid"], "multiclass", ["gas", "liquid", "solid"], [0.0, 2.0, NAN, 1.0]),
    ],
)
def test_guesses(texts: list[str], kind: str, classes: list[str] | None, labels: list[float]) -> None:
    column = read_target(texts, "y")
    assert column.target == {"name": "y", "kind": kind, **({} if classes is None else {"classes": classes})}
    np.testing.assert_array_equal(column.labels, labels)
    assert not column.left_out


@pytest.mark.parametrize(
    ("texts", "kind", "labels"),
    [
        (["0", "1"], "regression", [0.0, 1.0]),
        (["10", "2", "1"], "multiclass", [2.0, 1.0, 0.0]),
        (["1A", "2B", "1A"], "multiclass", [0.0, 1.0, 0.0]),
    ],
)
def test_what_is_told_counts(texts: list[str], kind: str, labels: list[float]) -> None:
    column = read_target(texts, "y", kind)
    assert column.target["kind"] == kind
    assert column.labels.tolist() == labels


def test_words_among_numbers_are_left_out_and_kept_for_the_note() -> None:
    column = read_target(["1", "2", "n/d", "3", "failed"], "y")
    assert column.left_out == {2: "n/d", 4: "failed"}
    assert np.isnan(column.labels).tolist() == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("texts", "kind", "message"),
    [
        (["<3.64", "5", "6"], None, r"1 of 3 labels of y are no finite numbers, e.g. '<3.64' in row 0 \(rows 0\)"),
        (["3,5", "4,25", "1"], None, "write a decimal point for the decimal comma"),
        (["1", "2", "inf"], None, "'inf' in row 2"),
        (["1A", "2B", "3C"], None, "or say --task y=multiclass"),
        (["0", "1", "2"], "binary", "3 different labels .* at most 2 are binary"),
        ([f"name {number}" for number in range(101)], None, "101 different labels .* at most 100 are multiclass"),
    ],
)
def test_refused(texts: list[str], kind: str | None, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_target(texts, "y", kind)


@given(st.lists(st.one_of(st.floats(-1e30, 1e30).map(repr), st.just("")), min_size=1, max_size=30))
def test_numbers_come_back_to_the_digit(texts: list[str]) -> None:
    labels = read_target(texts, "y", "regression").labels
    assert all(
        np.isnan(label) if text == "" else label == float(text) for text, label in zip(texts, labels, strict=True)
    )


@given(st.lists(st.sampled_from(["gas", "liquid", "solid", "plasma"]), min_size=3, max_size=30))
def test_classes_come_back(texts: list[str]) -> None:
    column = read_target(texts, "y", "multiclass")
    assert [column.target["classes"][int(label)] for label in column.labels] == texts


def test_kinds_are_column_and_kind() -> None:
    assert kinds_in(["y=binary", "a=b=regression"]) == {"y": "binary", "a=b": "regression"}
    for wrong in ("y", "y=ordinal", "=binary"):
        with pytest.raises(SettingsError, match="is not column=kind"):
            kinds_in([wrong])


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ({"name": "logD", "kind": "regression"}, "logD: regression"),
        ({"name": "tox", "kind": "binary", "classes": ["no", "yes"]}, "tox: binary, positive is yes (not no)"),
        ({"name": "c", "kind": "multiclass", "classes": list("abcdefg")}, "c: 7 classes (a, b, c, d, e, ...)"),
    ],
)
def test_the_guess_is_told(target: dict[str, Any], told: str) -> None:
    assert describe_target(target) == told
