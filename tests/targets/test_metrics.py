"""Metrics are scikit-learn's, and None rather than a number that says nothing; intervals cover the truth."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from unimol2_hf.errors import MetricsError
from unimol2_hf.targets.bootstrap import METRICS, bootstrap_intervals, resampled_metrics
from unimol2_hf.targets.metrics import (
    MolecularClassification,
    MolecularRegression,
    binary_metrics,
    flat_metrics,
    metrics_by_target,
    multiclass_metrics,
    regression_metrics,
    validation_score,
)

Array = NDArray[np.float64]
REGRESSION: dict[str, Any] = {"name": "logP", "kind": "regression", "mean": 0.0, "std": 2.0}
BINARY: dict[str, Any] = {"name": "toxic", "kind": "binary"}
MULTICLASS: dict[str, Any] = {"name": "phase", "kind": "multiclass", "classes": ["solid", "liquid", "gas"]}


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)


def some_rows(kind: str, generator: np.random.Generator, rows: int = 80) -> tuple[Array, Array]:
    """Predictions, some of them equal, and labels."""
    if kind == "regression":
        return generator.normal(size=rows).round(1), generator.normal(size=rows)
    if kind == "binary":
        return generator.random(rows).round(1), generator.integers(2, size=rows).astype(float)
    logits = generator.normal(size=(rows, 3)).round(1)
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), generator.integers(3, size=rows).astype(float)


class TestRegression:
    def test_known_values(self) -> None:
        metrics = regression_metrics(np.array([1.0, 2.0, 6.0, 9.0]), np.array([1.0, 4.0, 5.0, np.nan]), 3.0)
        assert metrics["count"] == 3
        assert metrics["mae"] == pytest.approx(1.0)
        assert metrics["rmse"] == pytest.approx((5 / 3) ** 0.5)
        assert metrics["r2"] == pytest.approx(1 - 5 / (26 / 3))
        assert metrics["baseline_mae"] == pytest.approx(5 / 3)

    def test_as_an_evaluate_metric(self) -> None:
        metric = MolecularRegression(keep_in_memory=True)
        computed = metric.compute(predictions=[1.0, 2.0], references=[2.0, 4.0], training_mean=0.0)
        assert computed["mae"] == pytest.approx(1.5)
        assert computed["baseline_mae"] == pytest.approx(3.0)
        assert computed["mae_interval"] is None

    def test_nothing_to_compare(self) -> None:
        assert regression_metrics(np.array([1.0]), np.array([np.nan]), 0.0)["mae"] is None
        assert regression_metrics(np.array([1.0]), np.array([2.0]))["r2"] is None
        assert regression_metrics(np.array([1.0, 2.0]), np.array([3.0, 3.0]))["r2"] is None


class TestBinary:
    def test_are_scikit_learns(self, generator: np.random.Generator) -> None:
        probabilities, labels = some_rows("binary", generator)
        predicted = probabilities >= 0.5
        assert binary_metrics(probabilities, labels, 0.25) == {
            "count": 80,
            "positives": int(labels.sum()),
            "roc_auc": pytest.approx(sk.roc_auc_score(labels, probabilities)),
            "pr_auc": pytest.approx(sk.average_precision_score(labels, probabilities)),
            "log_loss": pytest.approx(sk.log_loss(labels, probabilities)),
            "brier": pytest.approx(sk.brier_score_loss(labels, probabilities)),
            "accuracy": pytest.approx(sk.accuracy_score(labels, predicted)),
            "balanced_accuracy": pytest.approx(sk.balanced_accuracy_score(labels, predicted)),
            "mcc": pytest.approx(sk.matthews_corrcoef(labels, predicted)),
            "baseline_log_loss": pytest.approx(-np.log(np.array([0.75, 0.25])[labels.astype(int)]).mean()),
        }

    def test_missing_labels_and_predictions_are_left_out(self, generator: np.random.Generator) -> None:
        probabilities, labels = some_rows("binary", generator)
        holes_in_labels, holes_in_predictions = labels.copy(), probabilities.copy()
        holes_in_labels[:10], holes_in_predictions[10:20] = np.nan, np.nan
        assert binary_metrics(holes_in_predictions, holes_in_labels) == binary_metrics(probabilities[20:], labels[20:])

    def test_as_an_evaluate_metric(self, generator: np.random.Generator) -> None:
        probabilities, labels = some_rows("binary", generator)
        labels[3] = np.nan
        computed = MolecularClassification(keep_in_memory=True).compute(
            predictions=probabilities, references=labels, training_share=0.25
        )
        assert {name: computed[name] for name in computed if not name.endswith("_interval")} == binary_metrics(
            probabilities, labels, 0.25
        )
        assert all(computed[f"{name}_interval"][0] <= computed[f"{name}_interval"][1] for name in METRICS["binary"])

    def test_one_class_only(self) -> None:
        metrics = binary_metrics(np.array([0.5, 0.25]), np.zeros(2))
        assert [name for name in METRICS["binary"] if metrics[name] is None] == [
            "roc_auc",
            "pr_auc",
            "balanced_accuracy",
            "mcc",
        ]
        assert metrics["log_loss"] == pytest.approx(-np.log([0.5, 0.75]).mean())

    def test_no_row(self) -> None:
        metrics = binary_metrics(np.array([0.5]), np.array([np.nan]), 0.5)
        assert (metrics.pop("count"), metrics.pop("positives")) == (0, 0)
        assert set(metrics.values()) == {None}


class TestMulticlass:
    def test_are_scikit_learns(self, generator: np.random.Generator) -> None:
        probabilities, labels = some_rows("multiclass", generator)
        predicted = probabilities.argmax(axis=1)
        shares = np.array([0.5, 0.25, 0.25])
        assert multiclass_metrics(probabilities, labels, shares) == {
            "count": 80,
            "log_loss": pytest.approx(sk.log_loss(labels, probabilities)),
            "accuracy": pytest.approx(sk.accuracy_score(labels, predicted)),
            "balanced_accuracy": pytest.approx(sk.balanced_accuracy_score(labels, predicted)),
            "roc_auc": pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class="ovr")),
            "baseline_log_loss": pytest.approx(-np.log(shares[labels.astype(int)]).mean()),
        }

    def test_probabilities_in_float32(self, generator: np.random.Generator, recwarn: pytest.WarningsRecorder) -> None:
        probabilities, labels = some_rows("multiclass", generator)
        single = multiclass_metrics(probabilities.astype(np.float32), labels)
        assert single["log_loss"] == pytest.approx(multiclass_metrics(probabilities, labels)["log_loss"], rel=1e-6)
        assert not recwarn.list

    def test_a_class_is_missing(self, generator: np.random.Generator) -> None:
        probabilities, labels = some_rows("multiclass", generator)
        there = labels < 2
        metrics = MolecularClassification(keep_in_memory=True).compute(
            predictions=probabilities[there], references=labels[there]
        )
        assert metrics["roc_auc"] is None
        assert metrics["roc_auc_interval"] is None
        recalls = [(probabilities[labels == each].argmax(axis=1) == each).mean() for each in (0, 1)]
        assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))
        low, high = metrics["balanced_accuracy_interval"]
        assert low < metrics["balanced_accuracy"] < high


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([0.5, 3.0], [0, 1], r"3\.0 is no probability; give 0 to 1, no logits"),
        ([0.5, 0.5], [0, 2], r"2\.0 is no class; use the indices 0 to 1"),
        ([[0.5, 0.2]], [0], "0.7 is the sum of a row's probabilities"),
        ([[0.5, 0.5]], [0.5], r"0\.5 is no class"),
        ([0.5], [0, 1], r"not \(1,\) and \(2,\)"),
    ],
)
def test_what_is_no_classification(predictions: list[Any], references: list[float], message: str) -> None:
    metrics = multiclass_metrics if isinstance(predictions[0], list) else binary_metrics
    with pytest.raises(MetricsError, match=message):
        metrics(np.array(predictions), np.array(references, dtype=float))


class TestIntervals:
    @pytest.mark.parametrize("kind", METRICS)
    def test_a_resample_has_the_metrics_of_its_rows(self, kind: str, generator: np.random.Generator) -> None:
        predictions, labels = some_rows(kind, generator)
        drawn = generator.integers(len(labels), size=(20, len(labels)))
        weights = np.stack([np.bincount(rows, minlength=len(labels)) for rows in drawn]).astype(float)
        resampled = resampled_metrics(kind, weights, predictions, labels)
        of_kind: Any = {"regression": regression_metrics, "binary": binary_metrics, "multiclass": multiclass_metrics}
        for rows, values in zip(drawn, resampled.T, strict=True):
            expected = of_kind[kind](predictions[rows], labels[rows])
            assert dict(zip(METRICS[kind], values, strict=True)) == {
                name: pytest.approx(expected[name]) for name in METRICS[kind]
            }

    def test_a_resample_with_one_class_has_no_auc(self) -> None:
        weights, predictions = np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([0.9, 0.2])
        with np.errstate(invalid="ignore"):
            values = dict(
                zip(
                    METRICS["binary"],
                    resampled_metrics("binary", weights, predictions, np.array([1.0, 0.0])),
                    strict=True,
                )
            )
        for name in ("roc_auc", "pr_auc", "balanced_accuracy", "mcc"):
            np.testing.assert_array_equal(values[name], [np.nan, 1.0])
        assert np.isfinite(values["log_loss"]).all()

    def test_cover_the_truth(self, generator: np.random.Generator) -> None:
        """Of normal errors with deviation 1 the MAE is sqrt(2 / pi); of scores one deviation apart the AUC is 0.76."""
        covered = {"mae": 0, "roc_auc": 0}
        truth = {"mae": math.sqrt(2 / math.pi), "roc_auc": 0.5 * (1 + math.erf(0.5))}
        for _ in range(100):
            errors, labels = generator.normal(size=80), generator.integers(2, size=80).astype(float)
            scores = 1 / (1 + np.exp(-errors - labels))
            intervals = {
                **bootstrap_intervals("regression", errors, np.zeros(80)),
                **bootstrap_intervals("binary", scores, labels),
            }
            for name in covered:
                low, high = intervals[f"{name}_interval"] or [math.nan, math.nan]
                covered[name] += low <= truth[name] <= high
        assert min(covered.values()) >= 88

    def test_are_the_same_each_time(self, generator: np.random.Generator) -> None:
        predictions, labels = some_rows("binary", generator)
        assert bootstrap_intervals("binary", predictions, labels) == bootstrap_intervals("binary", predictions, labels)

    @pytest.mark.parametrize("kind", METRICS)
    def test_none_of_few_rows(self, kind: str, generator: np.random.Generator) -> None:
        predictions, labels = some_rows(kind, generator)
        assert set(bootstrap_intervals(kind, predictions[:9], labels[:9]).values()) == {None}
        intervals = bootstrap_intervals(kind, predictions[:40], labels[:40])
        assert all(interval is not None and interval[0] < interval[1] for interval in intervals.values())


class TestByTarget:
    def test_of_every_kind_in_every_form(self, generator: np.random.Generator) -> None:
        targets = [REGRESSION, MULTICLASS, BINARY]
        rows = [some_rows(target["kind"], generator) for target in targets]
        labels = np.stack([labels for _, labels in rows], axis=1)
        labels[:5, 2] = np.nan
        by_name = {target["name"]: predictions for target, (predictions, _) in zip(targets, rows, strict=True)}
        metrics = metrics_by_target(by_name, labels, targets, labels)
        assert list(metrics) == ["logP", "phase", "toxic"]
        outputs = np.column_stack(list(by_name.values()))
        assert outputs.shape == (80, 5)
        assert metrics_by_target(outputs, labels, targets, labels) == metrics
        assert metrics_by_target(list(by_name.values()), labels, targets, labels) == metrics
        assert metrics["toxic"]["count"] == 75
        assert metrics["logP"]["baseline_mae"] == pytest.approx(np.abs(labels[:, 0] - labels[:, 0].mean()).mean())
        # The shares of the very labels: their entropy.
        for name, column in (("phase", labels[:, 1]), ("toxic", labels[5:, 2])):
            shares = np.unique(column, return_counts=True)[1] / len(column)
            assert metrics[name]["baseline_log_loss"] == pytest.approx(-(shares * np.log(shares)).sum())

    def test_outputs_of_another_task(self) -> None:
        with pytest.raises(MetricsError, match="3 outputs of the targets"):
            metrics_by_target(np.zeros((4, 2)), np.zeros((4, 1)), [MULTICLASS], np.zeros((4, 1)))

    def test_no_training_label(self) -> None:
        metrics = metrics_by_target(np.zeros((4, 1)), np.zeros((4, 1)), [REGRESSION], np.full((2, 1), np.nan))
        assert metrics["logP"]["baseline_mae"] is None


def test_flat_numbers_for_logs() -> None:
    report = {"test": {"logP": {"mae": 0.5, "r2": None, "mae_interval": [0.4, 0.6], "count": 3}}, "rows": {"all": 9}}
    assert flat_metrics(report) == {"test/logP/mae": 0.5, "test/logP/count": 3.0, "rows/all": 9.0}


class TestValidationScore:
    def test_is_the_mean_over_the_targets(self) -> None:
        labels = np.array([[1.0, 0.0, 0.0], [3.0, np.nan, 1.0], [np.nan, 2.0, 1.0]])
        outputs = np.array([[2.0, 0.5, 0.25, 0.25, 0.2], [3.0, 1.0, 0.0, 0.0, 0.1], [9.0, 0.25, 0.25, 0.5, 0.9]])
        score = validation_score(outputs, labels, [REGRESSION, MULTICLASS, BINARY])
        assert score == pytest.approx((0.5 / 2.0 + math.log(2) + 0.5) / 3)

    def test_log_loss_where_one_class_is_there(self) -> None:
        score = validation_score(np.array([[0.5], [0.25]]), np.zeros((2, 1)), [BINARY])
        assert score == pytest.approx(-np.log([0.5, 0.75]).mean())

    def test_a_target_without_labels_does_not_count(self) -> None:
        labels = np.array([[1.0, np.nan]])
        assert validation_score(np.array([[2.0, 0.5]]), labels, [REGRESSION, BINARY]) == pytest.approx(0.5)
        assert math.isnan(validation_score(np.array([[0.5]]), labels[:, 1:], [BINARY]))

    def test_of_a_run_that_diverges(self) -> None:
        assert math.isnan(validation_score(np.full((2, 1), np.inf), np.ones((2, 1)), [REGRESSION]))
