"""What a column of labels holds: numbers, two values or classes; and its labels as numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..configuration_unimol2 import BINARY, KINDS, MULTICLASS, REGRESSION
from ..errors import SettingsError, TableError

MISSING_WORDS = ("", "na", "n/a", "nan", "none", "null", "-", "?")
_BOOLEANS = (("false", "true"), ("no", "yes"), ("negative", "positive"), ("neg", "pos"))
# "<3.64", "~5", "3.78 nM", "3,730.0": meant as numbers, and none that can be learned from.
_LIKE_A_NUMBER = re.compile(r"[<>=~≤≥±\s]*[-+]?\d")
_MOST_CLASSES = 100
_SHOWN = 5


@dataclass(frozen=True)
class TargetColumn:
    """Labels of one target.

    Attributes:
        target: its entry in `UniMol2Config.targets`, without the scale.
        labels: (n,) values, 0 or 1, or indices of classes; NaN where missing.
        left_out: texts that are no label of this kind, by row; they count as missing.
    """

    target: dict[str, Any]
    labels: NDArray[np.float64]
    left_out: dict[int, str]


def read_target(texts: Sequence[str], name: str, kind: str | None = None) -> TargetColumn:
    """The labels of a column, of a kind that is guessed unless it is given.

    Two values or booleans are binary, numbers regression (integers too), more than two texts classes.

    Raises:
        TableError: qualified or decorated numbers, or labels that do not fit the kind.
    """
    present = {row: text.strip() for row, text in enumerate(texts) if text.strip().lower() not in MISSING_WORDS}
    kind = kind or guess_kind(list(present.values()))
    if kind == REGRESSION:
        return _read_numbers(present, len(texts), name)
    return _read_classes(present, len(texts), name, kind)


def guess_kind(texts: Sequence[str]) -> str:
    """Of labels that are not missing."""
    different = set(texts)
    numeric = sum(_LIKE_A_NUMBER.match(text) is not None for text in texts)
    if len({_value_of(text) for text in different}) == 2 and numeric in (0, len(texts)):
        return BINARY
    return REGRESSION if 2 * numeric >= len(texts) else MULTICLASS


def kinds_in(tasks: Sequence[str]) -> dict[str, str]:
    """The kinds that `--task column=kind` gives.

    Raises:
        SettingsError: not of that form, or no known kind.
    """
    given = {}
    for text in tasks:
        name, _, kind = text.rpartition("=")
        if not name or kind not in KINDS:
            raise SettingsError(f"task {text!r} is not column=kind; a kind is one of {', '.join(KINDS)}")
        given[name] = kind
    return given


def describe_target(target: dict[str, Any]) -> str:
    """In a few words, for the line in which a guess is told."""
    if target["kind"] == REGRESSION:
        return f"{target['name']}: regression"
    classes = list(map(str, target["classes"]))
    if target["kind"] == BINARY:
        return f"{target['name']}: binary, positive is {classes[1]} (not {classes[0]})"
    shown = ", ".join(classes[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")
    return f"{target['name']}: {len(classes)} classes ({shown})"


def _value_of(text: str) -> float | str:
    """What two ways of writing a label have in common: 1 and 1.0 are one value."""
    number = _number_in(text)
    return text.lower() if np.isnan(number) else number


def _number_in(text: str) -> float:
    """NaN where there is none that float32 holds."""
    try:
        number = float(text)
    except ValueError:
        return np.nan
    return number if abs(number) <= float(np.finfo(np.float32).max) else np.nan


def _read_numbers(present: dict[int, str], count: int, name: str) -> TargetColumn:
    labels = np.full(count, np.nan)
    for row, text in present.items():
        labels[row] = _number_in(text)
    left_out = {row: text for row, text in present.items() if np.isnan(labels[row])}
    decorated = {row: text for row, text in left_out.items() if _is_decorated(text)}
    if decorated:
        row, text = next(iter(decorated.items()))
        rows = ", ".join(map(str, list(decorated)[:_SHOWN])) + (", ..." if len(decorated) > _SHOWN else "")
        comma = re.fullmatch(r"[-+]?\d+,\d+", text) is not None
        mend = "write a decimal point for the decimal comma" if comma else "write a number or leave the cell empty"
        raise TableError(
            f"{len(decorated)} of {len(present)} labels of {name} are no finite numbers, e.g. {text!r} in row {row} "
            f"(rows {rows}); {mend}, or say --task {name}={MULTICLASS}"
        )
    return TargetColumn({"name": name, "kind": REGRESSION}, labels, left_out)


def _is_decorated(text: str) -> bool:
    return _LIKE_A_NUMBER.match(text) is not None or text.lower().lstrip("+-") in ("inf", "infinity")


def _read_classes(present: dict[int, str], count: int, name: str, kind: str) -> TargetColumn:
    values = {row: _value_of(text) for row, text in present.items()}
    spelled: dict[Any, str] = {}
    for row, value in values.items():
        spelled.setdefault(value, present[row])
    ordered = _in_order(list(spelled))
    most = 2 if kind == BINARY else _MOST_CLASSES
    if len(ordered) > most:
        shown = ", ".join(spelled[value] for value in ordered[:_SHOWN])
        raise TableError(
            f"target {name} has {len(ordered)} different labels ({shown}, ...), at most {most} are {kind}; name "
            f"another column, or say --task {name}={REGRESSION if kind == BINARY else 'kind'}"
        )
    position = {value: float(index) for index, value in enumerate(ordered)}
    labels = np.full(count, np.nan)
    for row, value in values.items():
        labels[row] = position[value]
    return TargetColumn({"name": name, "kind": kind, "classes": [spelled[value] for value in ordered]}, labels, {})


def _in_order(values: list[Any]) -> list[Any]:
    """Numbers by size, texts by the alphabet; of two the negative one first, as far as words tell."""
    ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
    if len(ordered) == 2 and all(isinstance(value, str) for value in ordered):
        first, second = ordered
        if (second, first) in _BOOLEANS or second.endswith(first):  # inactive after active
            return [second, first]
    return ordered
