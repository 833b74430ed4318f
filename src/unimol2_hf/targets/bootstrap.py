"""Percentile bootstrap over rows: how far a metric would move with other test molecules."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..configuration_unimol2 import BINARY, MULTICLASS, REGRESSION

FloatArray = NDArray[np.floating[Any]]

# Of each kind, in the order in which the functions below give them.
METRICS = {
    REGRESSION: ("mae", "rmse", "r2"),
    BINARY: ("roc_auc", "pr_auc", "log_loss", "brier", "accuracy", "balanced_accuracy", "mcc"),
    MULTICLASS: ("log_loss", "accuracy", "balanced_accuracy", "roc_auc"),
}

RESAMPLES = 1000
FEWEST_ROWS = 10
_SEED = 0
_SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)
_PERCENTILES = (2.5, 97.5)
# A large table's intervals are narrow; fewer resamples tell them as well.
_MOST_DRAWS = 20_000_000
_FEWEST_RESAMPLES = 100
_DRAWS_AT_ONCE = 1_000_000


def bootstrap_intervals(kind: str, predictions: FloatArray, references: FloatArray) -> dict[str, list[float] | None]:
    """`<metric>_interval`: [low, high] of each metric, the middle 95 % of 1,000 resamples; the same at every call.

    Past 20,000 rows there are fewer resamples, at least 100. Resamples in which a metric is not defined, as where a
    class was not drawn, are left out; without any other, or under 10 rows, its interval is None.

    Args:
        kind: of the target.
        predictions: (n,) values or probabilities of the positive class, or (n, classes) that sum to one; no NaN.
        references: (n,) labels; a class is its index; no NaN.
    """
    keys = [f"{name}_interval" for name in METRICS[kind]]
    if len(references) < FEWEST_ROWS:
        return dict.fromkeys(keys)
    with np.errstate(divide="ignore", invalid="ignore"):
        blocks = [resampled_metrics(kind, weights, predictions, references) for weights in _resamples(len(references))]
    return dict(zip(keys, map(_interval, np.concatenate(blocks, axis=1)), strict=True))


def resampled_metrics(kind: str, weights: FloatArray, predictions: FloatArray, references: FloatArray) -> FloatArray:
    """The metrics (metrics, resamples) of weighted rows, those of scikit-learn with `sample_weight`; NaN if undefined.

    weights: (resamples, n), how often each row was drawn.
    """
    return np.stack(_RESAMPLED[kind](weights, predictions, references))


def _resamples(rows: int) -> Iterator[FloatArray]:
    """Weights (resamples, rows) of all resamples, in blocks that fit in memory."""
    generator = np.random.default_rng(_SEED)
    left = min(RESAMPLES, max(_FEWEST_RESAMPLES, _MOST_DRAWS // rows))
    while left:
        count = min(left, max(1, _DRAWS_AT_ONCE // rows))
        drawn = generator.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float64)
        left -= count


def _interval(values: FloatArray) -> list[float] | None:
    values = values[np.isfinite(values)]
    return np.percentile(values, _PERCENTILES).tolist() if len(values) else None


def _resampled_regression(weights: FloatArray, predictions: FloatArray, references: FloatArray) -> list[FloatArray]:
    errors, centred = predictions - references, references - references.mean()
    rows = len(errors)
    squares, spread = weights @ errors**2, weights @ centred**2
    varied = spread - (weights @ centred) ** 2 / rows
    varied[varied <= spread * _SMALLEST_PROBABILITY * rows] = np.nan
    return [weights @ np.abs(errors) / rows, np.sqrt(squares / rows), 1 - squares / varied]


def _resampled_binary(weights: FloatArray, predictions: FloatArray, references: FloatArray) -> list[FloatArray]:
    rows, positive, predicted = len(references), references == 1, predictions >= 0.5
    losses = -np.log(np.where(positive, predictions, 1 - predictions).clip(_SMALLEST_PROBABILITY, 1))
    tp, fp = weights @ (predicted & positive), weights @ (predicted & ~positive)
    fn, tn = weights @ (~predicted & positive), weights @ (~predicted & ~positive)
    # As scikit-learn has it, 0 where only one class is predicted.
    spread = np.maximum((tp + fp) * (tn + fn), 1) * (tp + fn) * (tn + fp)
    return [
        *_ranking(weights, predictions, positive),
        weights @ losses / rows,
        weights @ (predictions - references) ** 2 / rows,
        weights @ (predicted == positive) / rows,
        (tp / (tp + fn) + tn / (tn + fp)) / 2,
        (tp * tn - fp * fn) / np.sqrt(spread),
    ]


def _resampled_multiclass(weights: FloatArray, predictions: FloatArray, references: FloatArray) -> list[FloatArray]:
    classes, rows = np.arange(predictions.shape[1]), len(references)
    of_class = references[:, None] == classes
    hits = predictions.argmax(axis=1) == references
    losses = -np.log(predictions[of_class].clip(_SMALLEST_PROBABILITY, 1))
    recalls = (weights @ (of_class & hits[:, None])) / (weights @ of_class)
    aucs = [_ranking(weights, predictions[:, each], of_class[:, each])[0] for each in classes]
    return [weights @ losses / rows, weights @ hits / rows, np.nanmean(recalls, axis=1), np.mean(aucs, axis=0)]


def _ranking(weights: FloatArray, scores: FloatArray, positive: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """ROC-AUC and average precision (resamples,) of weighted rows, as scikit-learn's with `sample_weight`.

    NaN where a resample has one class only.
    """
    order = np.argsort(-scores, kind="stable")
    # Rows of one score stand or fall together.
    groups = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
    weights, positive = weights[:, order], positive[order]
    found = np.add.reduceat(weights * positive, groups, axis=1)
    false = np.add.reduceat(weights * ~positive, groups, axis=1)
    all_found, all_false = found.cumsum(axis=1), false.cumsum(axis=1)
    positives, negatives = all_found[:, -1], all_false[:, -1]
    roc_auc = ((all_found - found / 2) * false).sum(axis=1) / (positives * negatives)
    precision = all_found / np.maximum(all_found + all_false, 1)
    average_precision = (found * precision).sum(axis=1) / np.where(negatives > 0, positives, np.nan)
    return roc_auc, average_precision


_RESAMPLED: dict[str, Callable[[FloatArray, FloatArray, FloatArray], list[FloatArray]]] = {
    REGRESSION: _resampled_regression,
    BINARY: _resampled_binary,
    MULTICLASS: _resampled_multiclass,
}
