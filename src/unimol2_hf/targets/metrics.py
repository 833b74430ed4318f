"""Regression metrics beside the predict-the-mean baseline."""

from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

FloatArray = NDArray[np.floating[Any]]


class MolecularRegression(evaluate.Metric):
    """MAE, RMSE and R2 of one target, and the MAE of predicting the training mean; NaN references do not count.

    An `evaluate.Metric` that needs no download: `MolecularRegression().compute(predictions=..., references=...,
    training_mean=...)`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Regression metrics of a molecular property, in the property's units.",
            citation="",
            inputs_description="predictions, references: one float each; NaN references are left out.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(
        self, predictions: Any, references: Any, training_mean: float | None = None
    ) -> dict[str, float | int | None]:
        return regression_metrics(np.asarray(predictions), np.asarray(references), training_mean)


def regression_metrics(
    predictions: FloatArray, references: FloatArray, training_mean: float | None = None
) -> dict[str, float | int | None]:
    """`mae`, `rmse`, `r2` (None under two labels), `baseline_mae` (None without a mean) and `count`, for 1D arrays.

    A molecule without a prediction (NaN) does not count either; `count` tells how many did.
    """
    present = ~(np.isnan(references) | np.isnan(predictions))
    predictions, references = predictions[present], references[present]
    count = int(present.sum())
    if not count:
        return {"count": 0, "mae": None, "rmse": None, "r2": None, "baseline_mae": None}
    baseline = None if training_mean is None else float(np.abs(references - training_mean).mean())
    return {
        "count": count,
        "mae": float(mean_absolute_error(references, predictions)),
        "rmse": float(root_mean_squared_error(references, predictions)),
        "r2": float(r2_score(references, predictions)) if count > 1 else None,
        "baseline_mae": baseline,
    }


def metrics_by_target(
    predictions: FloatArray, references: FloatArray, targets: list[str], training_means: list[float]
) -> dict[str, dict[str, float | int | None]]:
    """Metrics of each column of (n, targets) arrays."""
    metric = MolecularRegression(keep_in_memory=True)
    return {
        target: metric.compute(
            predictions=predictions[:, number], references=references[:, number], training_mean=training_means[number]
        )
        for number, target in enumerate(targets)
    }
