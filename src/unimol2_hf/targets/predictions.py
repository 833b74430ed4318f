"""Predictions as columns of a table: the same names in every report and file."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..calibration import Calibration, property_result
from ..configuration_unimol2 import MULTICLASS, UniMol2Config

FloatArray = NDArray[np.float64]

PREDICTED = "predicted_"
LOWER, UPPER, SPREAD = "lower", "upper", "spread"


def prediction_columns(targets: Sequence[Mapping[str, Any]], spreads: bool, intervals: Sequence[str]) -> list[str]:
    """The columns of predictions, in order.

    `predicted_<target>`; of a multiclass target, its class, then `predicted_<target>_<class>` for each one; of an
    ensemble `predicted_<target>_spread`, and where there are intervals `_lower` and `_upper`.

    Args:
        targets: as `UniMol2Config.targets`.
        spreads: whether the model is an ensemble.
        intervals: names of the targets that have intervals.
    """
    columns = []
    for target in targets:
        name = f"{PREDICTED}{target['name']}"
        classes = target["classes"] if target["kind"] == MULTICLASS else ()
        ends = (LOWER, UPPER) if target["name"] in intervals else ()
        columns += [name, *(f"{name}_{each}" for each in (*classes, *ends, *((SPREAD,) if spreads else ())))]
    return columns


def columns_of(config: UniMol2Config, calibration: Calibration | None) -> list[str]:
    """The columns of a model's predictions."""
    names = calibration.interval_names if calibration is not None else []
    return prediction_columns(config.task, config.num_members > 1, names)


def prediction_fields(config: UniMol2Config, calibration: Calibration | None) -> list[pa.Field]:
    """The same with their types: numbers, of a multiclass target itself its class."""
    classes = {f"{PREDICTED}{target['name']}" for target in config.task if target["kind"] == MULTICLASS}
    names = columns_of(config, calibration)
    return [pa.field(name, pa.string() if name in classes else pa.float64()) for name in names]


def prediction_cells(result: Mapping[str, Any], columns: int) -> list[Any]:
    """A pipeline's result in the order of these columns; None for a molecule that failed."""
    if result["predictions"] is None:
        return [None] * columns
    cells: list[Any] = []
    for name, value in result["predictions"].items():
        cells += [value, *(result.get("probabilities") or {}).get(name, {}).values()]
        if name in (result.get("intervals") or {}):
            cells += result["intervals"][name] or (None, None)
        if result.get("spreads"):
            cells.append(result["spreads"][name])
    return cells


def molecule_results(
    logits: Sequence[FloatArray], config: UniMol2Config, calibration: Calibration | None = None
) -> list[dict[str, Any]]:
    """Of each molecule what the pipeline would give.

    Args:
        logits: of each molecule (conformers, members, num_labels), without conformers where it failed.
        config: of the model.
        calibration: of the model, if it has one.
    """
    return [property_result(config, each if len(each) else None, calibration) for each in logits]


def output_array(results: Sequence[Mapping[str, Any]], config: UniMol2Config) -> FloatArray:
    """Values and probabilities (n, num_labels) in the order of the task head's outputs; NaN where a molecule failed."""
    rows = [_output_values(result, config) for result in results]
    return np.array(rows, dtype=np.float64).reshape(len(rows), config.num_labels)


def _output_values(result: Mapping[str, Any], config: UniMol2Config) -> list[float]:
    if result["predictions"] is None:
        return [float("nan")] * config.num_labels
    values: list[float] = []
    for name, value in result["predictions"].items():
        values += (result.get("probabilities") or {}).get(name, {0: value}).values()
    return values
