"""Predictions as columns of a table: the same names in every report and file."""

from collections.abc import Mapping
from typing import Any

from ..configuration_unimol2 import MULTICLASS, UniMol2Config

PREDICTED = "predicted_"


def prediction_columns(config: UniMol2Config) -> list[str]:
    """`predicted_<target>`; of a multiclass target, its class, then `predicted_<target>_<class>` for each one."""
    names = []
    for target in config.task:
        names.append(f"{PREDICTED}{target['name']}")
        if target["kind"] == MULTICLASS:
            names += [f"{PREDICTED}{target['name']}_{each}" for each in target["classes"]]
    return names


def prediction_cells(result: Mapping[str, Any], config: UniMol2Config) -> list[Any]:
    """A pipeline's result in the order of these columns; None for a molecule that failed."""
    if result["predictions"] is None:
        return [None] * len(prediction_columns(config))
    cells: list[Any] = []
    for name, value in result["predictions"].items():
        cells += [value, *(result.get("probabilities") or {}).get(name, {}).values()]
    return cells


def output_values(result: Mapping[str, Any], config: UniMol2Config) -> list[float]:
    """A pipeline's result as numbers, in the order of the task head's outputs; NaN for a molecule that failed."""
    if result["predictions"] is None:
        return [float("nan")] * config.num_labels
    values: list[float] = []
    for name, value in result["predictions"].items():
        values += (result.get("probabilities") or {}).get(name, {0: value}).values()
    return values
