"""What a fitted model says of every row of its table: of molecules that members were fitted on, those that were not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from ..calibration import Calibration, members_without
from ..configuration_unimol2 import REGRESSION, UniMol2Config
from ..targets.predictions import columns_of, molecule_results, output_array, prediction_cells
from ..uncertainty.calibrate import fit_calibration, out_of_fold
from .members import NO_FOLD, Members
from .prepare import PreparedTable

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class FittedTable:
    """Predictions of every row.

    Attributes:
        config: of the model.
        results: as the pipeline gives them; of a row that lies in a fold, by the members that have not seen it.
        outputs: (n, num_labels) values and probabilities of these, NaN for rows that failed.
        folds: (n,) of the rows of the training and validation part, -1 elsewhere; `None` without folds.
        calibration: fitted on the rows that lie in folds.
    """

    config: UniMol2Config
    results: list[dict[str, Any]]
    outputs: FloatArray
    folds: NDArray[np.intp] | None
    calibration: Calibration | None

    def columns(self) -> dict[str, list[Any]]:
        """Of each column of predictions, as `predict` writes them, the cells of all rows."""
        names = columns_of(self.config, self.calibration)
        rows = [prediction_cells(result, len(names)) for result in self.results]
        return {name: [row[index] for row in rows] for index, name in enumerate(names)}


def predict_all(
    prepared: PreparedTable, members: Members, logits: Sequence[FloatArray], config: UniMol2Config, coverage: float
) -> FittedTable:
    """Calibrate on the rows that lie in folds, and predict all rows.

    Args:
        prepared: the table.
        members: the ensemble.
        logits: outputs (conformers, members, num_labels) of each row, without conformers where it failed.
        config: of the model.
        coverage: share of new molecules that intervals are to hold.
    """
    if members.folds is None:
        results = molecule_results(logits, config)
        return FittedTable(config, results, output_array(results, config), None, None)
    rows = np.flatnonzero(members.folds != NO_FOLD).tolist()
    means = np.stack([logits[row].mean(axis=0) for row in rows], axis=1)
    mean, spread = out_of_fold(means, members.folds[rows], members.left_out)
    labels = prepared.table.labels[rows]
    own_folds = members.folds[rows]
    calibration = fit_calibration(mean, spread, labels, own_folds, prepared.targets, members.left_out, coverage)
    honest = members_without(members.left_out)
    # To these members the molecules of a fold are new, as new ones will be to all.
    as_new = [replace(calibration, left_out=[list(range(len(honest)))] * len(own)) for own in honest]
    results = []
    for fold, own in zip(members.folds, logits, strict=True):
        inside = fold != NO_FOLD
        seen_by = (own[:, honest[fold]], as_new[fold]) if inside else (own, calibration)
        results += molecule_results([seen_by[0]], config, seen_by[1])
    return FittedTable(config, results, output_array(results, config), members.folds, calibration)


def coverage_of(fitted: FittedTable, rows: NDArray[np.intp], name: str, labels: FloatArray) -> dict[str, float | None]:
    """Share of labels (rows,) that the intervals of a target hold, and the intervals' mean width."""
    ends = [(fitted.results[row].get("intervals") or {}).get(name) or (np.nan, np.nan) for row in rows]
    lower, upper = np.array(ends, dtype=np.float64).reshape(-1, 2).T
    known = ~np.isnan(labels) & ~np.isnan(lower)
    if not known.any():
        return {"interval_coverage": None, "interval_width": None}
    inside = (lower <= labels) & (labels <= upper)
    return {
        "interval_coverage": float(inside[known].mean()),
        "interval_width": float((upper - lower)[known].mean()),
    }


def tell_calibration(prepared: PreparedTable, calibration: Calibration, console: Console) -> None:
    """Targets with too few labels for intervals."""
    for target in prepared.targets:
        name = str(target["name"])
        if target["kind"] == REGRESSION and calibration.rank(name) is None:
            console.print(
                escape(f"{name} has too few labels for intervals that hold {calibration.coverage:.0%}: none are given"),
                highlight=False,
            )
