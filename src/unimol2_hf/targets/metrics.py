"""Metrics of every kind of target, each with its bootstrap interval, beside what the training labels alone predict."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    log_loss,
    matthews_corrcoef,
    mean_absolute_error,
    r2_score,
    recall_score,
    roc_auc_score,
    root_mean_squared_error,
)

from ..configuration_unimol2 import BINARY, MULTICLASS, REGRESSION
from ..errors import MetricsError
from .bootstrap import METRICS, bootstrap_intervals

FloatArray = NDArray[np.floating[Any]]
Metrics = dict[str, Any]
Target = Mapping[str, Any]

# Raised whenever a key of the metrics changes its meaning; whoever writes metrics.json writes it too.
METRICS_VERSION = 1

_SUM_TOLERANCE = 1e-3
_FLOAT = datasets.Value("float64")


class MolecularRegression(evaluate.Metric):
    """MAE, RMSE and R2 of one target with intervals, and the MAE of predicting the training mean.

    NaN references do not count. An `evaluate.Metric` that needs no download:
    `MolecularRegression().compute(predictions=..., references=..., training_mean=...)`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Regression metrics of a molecular property, in the property's units.",
            citation="",
            inputs_description="predictions, references: one float each; NaN references are left out.",
            features=datasets.Features({"predictions": _FLOAT, "references": _FLOAT}),
        )

    def _compute(self, predictions: Any, references: Any, training_mean: float | None = None) -> Metrics:
        return _with_intervals(REGRESSION, np.asarray(predictions), np.asarray(references), training_mean)


class MolecularClassification(evaluate.Metric):
    """Metrics of one binary or multiclass target with intervals, and the log loss of the training shares.

    Predictions are probabilities: of the positive class (n,), or (n, classes). References are 0 or 1, or the index of
    a class; NaN does not count. `MolecularClassification().compute(predictions=..., references=...,
    training_share=...)`, the share of positives, or a list with that of each class. See `binary_metrics` and
    `multiclass_metrics`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Classification metrics of a molecular property.",
            citation="",
            inputs_description="predictions: probabilities; references: class indices; NaN references are left out.",
            features=[
                datasets.Features({"predictions": _FLOAT, "references": _FLOAT}),
                datasets.Features({"predictions": datasets.Sequence(_FLOAT), "references": _FLOAT}),
            ],
        )

    def _compute(self, predictions: Any, references: Any, training_share: Any = None) -> Metrics:
        probabilities = np.asarray(predictions, dtype=np.float64)
        kind = BINARY if probabilities.ndim == 1 else MULTICLASS
        return _with_intervals(kind, probabilities, np.asarray(references), training_share)


def regression_metrics(predictions: FloatArray, references: FloatArray, training_mean: float | None = None) -> Metrics:
    """`mae`, `rmse`, `r2` (None where labels do not vary), `baseline_mae` (None without a mean) and `count`.

    For 1D arrays. A molecule without a prediction (NaN) does not count either; `count` tells how many did.
    """
    predictions, references = _sound_rows(REGRESSION, predictions, references)
    if not len(references):
        return {"count": 0, **dict.fromkeys((*METRICS[REGRESSION], "baseline_mae"))}
    baseline = None if training_mean is None else float(np.abs(references - training_mean).mean())
    return {
        "count": len(references),
        "mae": float(mean_absolute_error(references, predictions)),
        "rmse": float(root_mean_squared_error(references, predictions)),
        "r2": float(r2_score(references, predictions)) if np.ptp(references) else None,
        "baseline_mae": baseline,
    }


def binary_metrics(probabilities: FloatArray, references: FloatArray, training_share: float | None = None) -> Metrics:
    """Metrics of probabilities (n,) of the positive class; a probability of one half or more predicts it.

    `roc_auc`, `pr_auc` (average precision), `balanced_accuracy` and `mcc` are None where only one class is there.
    `baseline_log_loss` is that of the training labels' share of positives, None without it. `count` and `positives`
    tell how many rows counted.

    Raises:
        MetricsError: a probability lies outside 0 to 1, or a reference is neither 0 nor 1.
    """
    probabilities, references = _sound_rows(BINARY, probabilities, references)
    count, positives = len(references), int(references.sum())
    if not count:
        return {"count": 0, "positives": 0, **dict.fromkeys((*METRICS[BINARY], "baseline_log_loss"))}
    shares = None if training_share is None else np.full(count, training_share)
    both = 0 < positives < count
    predicted = probabilities >= 0.5
    return {
        "count": count,
        "positives": positives,
        "roc_auc": float(roc_auc_score(references, probabilities)) if both else None,
        "pr_auc": float(average_precision_score(references, probabilities)) if both else None,
        "log_loss": float(log_loss(references, probabilities, labels=[0, 1])),
        "brier": float(brier_score_loss(references, probabilities, pos_label=1)),
        "accuracy": float(accuracy_score(references, predicted)),
        "balanced_accuracy": float(recall_score(references, predicted, average="macro")) if both else None,
        "mcc": float(matthews_corrcoef(references, predicted)) if both else None,
        "baseline_log_loss": None if shares is None else float(log_loss(references, shares, labels=[0, 1])),
    }


def multiclass_metrics(
    probabilities: FloatArray, references: FloatArray, training_shares: Sequence[float] | FloatArray | None = None
) -> Metrics:
    """Metrics of probabilities (n, classes), beside indices of classes (n,).

    `balanced_accuracy` is the mean recall of the classes that are there. `roc_auc` is the mean over the classes, each
    against the rest, None where one is missing. `baseline_log_loss` is that of the training labels' shares (classes,),
    None without them.

    Raises:
        MetricsError: a row is no distribution, or a reference no index of a class.
    """
    probabilities, references = _sound_rows(MULTICLASS, probabilities, references)
    if not len(references):
        return {"count": 0, **dict.fromkeys((*METRICS[MULTICLASS], "baseline_log_loss"))}
    predicted, classes = probabilities.argmax(axis=1), np.arange(probabilities.shape[1])
    # scikit-learn warns of sums that are off by what float32 rounds; ranks must not be rounded anew.
    normalised = probabilities / probabilities.sum(axis=1, keepdims=True)
    there = np.unique(references)
    aucs = [roc_auc_score(references == each, probabilities[:, each]) for each in classes if len(there) == len(classes)]
    shares = None if training_shares is None else np.tile(np.asarray(training_shares), (len(references), 1))
    return {
        "count": len(references),
        "log_loss": float(log_loss(references, normalised, labels=classes)),
        "accuracy": float(accuracy_score(references, predicted)),
        "balanced_accuracy": float(recall_score(references, predicted, labels=there, average="macro")),
        "roc_auc": float(np.mean(aucs)) if aucs else None,
        "baseline_log_loss": None if shares is None else float(log_loss(references, shares, labels=classes)),
    }


def _sound_rows(kind: str, predictions: FloatArray, references: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The rows with a label and a prediction, in float64, checked."""
    predictions, references = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if predictions.ndim != (2 if kind == MULTICLASS else 1) or references.shape != predictions.shape[:1]:
        shape = "(n, classes)" if kind == MULTICLASS else "(n,)"
        raise MetricsError(
            f"a {kind} target has predictions {shape} and references (n,), not {predictions.shape} and "
            f"{references.shape}"
        )
    missing = np.isnan(predictions).reshape(len(references), -1).any(axis=1) | np.isnan(references)
    predictions, references = predictions[~missing], references[~missing]
    _require(predictions, np.isfinite(predictions), "is no prediction; leave it out as NaN")
    if kind != REGRESSION:
        _check_probabilities(predictions)
        _check_classes(references, predictions.shape[1] if kind == MULTICLASS else 2)
    return predictions, references


def _check_probabilities(probabilities: FloatArray) -> None:
    _require(probabilities, (probabilities >= 0) & (probabilities <= 1), "is no probability; give 0 to 1, no logits")
    if probabilities.ndim == 2:
        sums = probabilities.sum(axis=1)
        _require(sums, np.abs(sums - 1) < _SUM_TOLERANCE, "is the sum of a row's probabilities; it must be 1")


def _check_classes(references: FloatArray, count: int) -> None:
    _require(references, np.isin(references, np.arange(count)), f"is no class; use the indices 0 to {count - 1}")


def _require(values: FloatArray, sound: NDArray[np.bool_], problem: str) -> None:
    if not sound.all():
        raise MetricsError(f"{values[~sound][0]} {problem}")


_METRICS_OF: dict[str, Callable[..., Metrics]] = {
    REGRESSION: regression_metrics,
    BINARY: binary_metrics,
    MULTICLASS: multiclass_metrics,
}


def _with_intervals(kind: str, predictions: FloatArray, references: FloatArray, baseline: Any) -> Metrics:
    metrics = _METRICS_OF[kind](predictions, references, baseline)
    return metrics | bootstrap_intervals(kind, *_sound_rows(kind, predictions, references))


def metrics_by_target(
    predictions: FloatArray | Sequence[FloatArray] | Mapping[str, FloatArray],
    references: FloatArray,
    targets: Sequence[Target],
    training_labels: FloatArray,
) -> dict[str, Metrics]:
    """Metrics of each target with their intervals, beside those of the training labels' mean or shares.

    Args:
        predictions: (n, outputs) in the order of the task head's outputs; or an array for each target, in order or by
            name: (n,), or (n, classes) of a multiclass one. Values of a regression target, else probabilities.
        references: (n, targets) labels, NaN where missing; a class is its index.
        targets: as `UniMol2Config.targets`.
        training_labels: (m, targets), of the training part.
    """
    columns = outputs_by_target(predictions, targets)
    return {
        target["name"]: _with_intervals(target["kind"], column, labels, baseline)
        for target, column, labels, baseline in zip(
            targets, columns, references.T, _baselines(targets, training_labels), strict=True
        )
    }


def outputs_by_target(
    predictions: FloatArray | Sequence[FloatArray] | Mapping[str, FloatArray], targets: Sequence[Target]
) -> list[FloatArray]:
    """An array for each target, (n,), or (n, classes) of a multiclass one; of any form `metrics_by_target` takes."""
    if isinstance(predictions, Mapping):
        return [predictions[target["name"]] for target in targets]
    if not isinstance(predictions, np.ndarray):
        return list(predictions)
    widths = [len(target["classes"]) if target["kind"] == MULTICLASS else 1 for target in targets]
    if predictions.shape[1:] != (sum(widths),):
        raise MetricsError(f"predictions {predictions.shape} do not have the {sum(widths)} outputs of the targets")
    blocks = np.split(predictions, np.cumsum(widths)[:-1], axis=1)
    return [
        block if target["kind"] == MULTICLASS else block[:, 0] for block, target in zip(blocks, targets, strict=True)
    ]


def _baselines(targets: Sequence[Target], training_labels: FloatArray) -> Iterator[Any]:
    """The mean of the training labels, which is the share of positives, or the shares (classes,); None without any."""
    for target, column in zip(targets, np.asarray(training_labels).T, strict=True):
        labels = column[~np.isnan(column)]
        if not len(labels):
            yield None
        elif target["kind"] == MULTICLASS:
            yield np.bincount(labels.astype(int), minlength=len(target["classes"])) / len(labels)
        else:
            yield float(labels.mean())


def flat_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers of a nested report by path, as `test/logP/mae`, for logs; intervals and None are left out."""
    flat: dict[str, float] = {}
    for name, value in report.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{path}": number for path, number in flat_metrics(value).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[name] = float(value)
    return flat


def validation_score(
    predictions: FloatArray | Sequence[FloatArray] | Mapping[str, FloatArray],
    references: FloatArray,
    targets: Sequence[Target],
) -> float:
    """One number for early stopping, lower is better: the mean over the targets that have labels, NaN without any.

    MAE in units of the target's `std`; 1 - ROC-AUC of a binary target, log loss where only one class is there; log
    loss of a multiclass one. Arguments as for `metrics_by_target`.
    """
    columns = outputs_by_target(predictions, targets)
    scores = [_score(*each) for each in zip(targets, columns, np.asarray(references).T, strict=True)]
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else math.nan


def _score(target: Target, predictions: FloatArray, references: FloatArray) -> float | None:
    # Of a run that diverges the validation loss tells; here such rows do not count.
    metrics = _METRICS_OF[target["kind"]](np.where(np.isfinite(predictions), predictions, np.nan), references)
    if not metrics["count"]:
        return None
    if target["kind"] == REGRESSION:
        return float(metrics["mae"] / (target.get("std") or 1.0))
    auc = metrics["roc_auc"] if target["kind"] == BINARY else None
    return float(metrics["log_loss"] if auc is None else 1 - auc)
