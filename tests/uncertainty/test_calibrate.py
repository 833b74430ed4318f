"""Fitted intervals and probabilities: against crepes, against the truth, and where there is little to fit on."""

from typing import Any

import numpy as np
import pytest
from crepes import ConformalRegressor
from numpy.typing import NDArray

from unimol2_hf.calibration import Calibration, calibrated_values, conformal_rank
from unimol2_hf.uncertainty.calibrate import fit_calibration, out_of_fold
from unimol2_hf.uncertainty.folds import all_pairs, neighbouring_pairs

pytestmark = pytest.mark.numerical

Array = NDArray[np.float64]
LOGD: dict[str, Any] = {"name": "logd", "kind": "regression"}
TOXIC: dict[str, Any] = {"name": "toxic", "kind": "binary", "classes": ["no", "yes"]}
PHASE: dict[str, Any] = {"name": "phase", "kind": "multiclass", "classes": ["gas", "liquid", "solid"]}


def fit(target: dict[str, Any], mean: Array, spread: Array, labels: Array) -> dict[str, Any]:
    folds = np.arange(len(labels)) % 3
    made = fit_calibration(mean, spread, labels[:, None], folds, [target], neighbouring_pairs(3), 0.9)
    return made.targets.get(target["name"], {})


def test_rows_are_told_by_members_that_have_not_seen_them() -> None:
    folds = np.array([0, 1, 2, 0])
    members = np.arange(12.0).reshape(3, 4, 1) ** 2
    mean, spread = out_of_fold(members, folds, all_pairs(3))
    # Members leave out folds 0 and 1, 0 and 2, 1 and 2.
    for row, honest in ((0, [0, 1]), (1, [0, 2]), (2, [1, 2]), (3, [0, 1])):
        assert mean[row, 0] == members[honest, row, 0].mean()
        assert spread[row, 0] == members[honest, row, 0].std(ddof=1)


def test_scores_are_those_of_crepes() -> None:
    generator = np.random.default_rng(0)
    labels, spread = generator.normal(size=300), generator.exponential(size=(300, 1))
    mean = labels[:, None] + spread * generator.normal(size=(300, 1))
    found = fit(LOGD, mean, spread, labels)
    sigmas = found["floor"] + spread[:, 0]
    for fold, scores in enumerate(found["scores"]):
        own = np.arange(300) % 3 == fold
        expected = ConformalRegressor().fit((labels - mean[:, 0])[own], sigmas=sigmas[own])
        for coverage in (0.5, 0.8, 0.9, 0.95):
            rank = conformal_rank(100, coverage)
            assert rank is not None
            interval = expected.predict_int(np.zeros(1), sigmas=np.ones(1), confidence=coverage)
            assert scores[rank - 1] == pytest.approx(interval[0, 1], rel=1e-4)


def test_new_labels_are_held() -> None:
    """Errors that grow with the spread: intervals hold them where the spread is small and where it is large."""
    generator = np.random.default_rng(1)

    def drawn(count: int) -> tuple[Array, Array, Array]:
        spread = generator.exponential(size=(count, 1))
        mean = generator.normal(size=(count, 1))
        return mean, spread, mean[:, 0] + (1 + spread[:, 0]) * generator.standard_t(4, size=count)

    mean, spread, labels = drawn(2000)
    found = fit(LOGD, mean, spread, labels)
    pooled = np.sort(np.concatenate(found["scores"]))
    assert [len(own) for own in found["scores"]] == [222] * 3
    mean, spread, labels = drawn(20_000)
    rank = conformal_rank(len(pooled), 0.9)
    assert rank is not None
    floor, score = found["floor"], pooled[rank - 1]
    inside = np.abs(labels - mean[:, 0]) <= score * (floor + spread[:, 0])
    assert inside.mean() == pytest.approx(0.9, abs=0.015)
    least, most = np.quantile(spread, [0.2, 0.8])
    for part in (spread[:, 0] < least, spread[:, 0] > most):
        assert inside[part].mean() == pytest.approx(0.9, abs=0.03)


def test_members_that_agree_have_plain_intervals() -> None:
    labels = np.random.default_rng(2).normal(size=100)
    found = fit(LOGD, np.zeros((100, 1)), np.zeros((100, 1)), labels)
    assert found["floor"] == 1.0
    assert np.sort(np.concatenate(found["scores"])) == pytest.approx(np.sort(np.abs(labels)), rel=1e-4)


def test_probabilities_become_frequencies() -> None:
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(4000, 1))
    labels = (generator.random(4000) < 1 / (1 + np.exp(-(2 * logits[:, 0] - 1)))).astype(float)
    found = fit(TOXIC, logits, logits * 0, labels)
    assert found["slope"] == pytest.approx(2, abs=0.2)
    assert found["offset"] == pytest.approx(-1, abs=0.2)


def test_probabilities_of_nothing_are_the_share() -> None:
    generator = np.random.default_rng(4)
    labels = (generator.random(200) < 0.2).astype(float)
    logits = generator.normal(size=(200, 1)) * 5 - 3 * labels[:, None]
    found = fit(TOXIC, logits, logits * 0, labels)
    probabilities = calibrated_values(TOXIC, logits, found)
    assert np.abs(probabilities - labels.mean()).max() < 0.01
    assert (np.argsort(probabilities[:, 0]) == np.argsort(logits[:, 0])).all()


def test_temperature() -> None:
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(4000, 3)) * 2
    shares = np.exp(logits / 3) / np.exp(logits / 3).sum(axis=1, keepdims=True)
    labels = (generator.random((4000, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(max=2).astype(float)
    assert fit(PHASE, logits, logits * 0, labels)["temperature"] == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("target", [LOGD, TOXIC, PHASE])
def test_few_labels_fit_nothing(target: dict[str, Any]) -> None:
    labels = np.where(np.arange(300) < (9 if target is LOGD else 19), 1.0, np.nan)
    size = 3 if target is PHASE else 1
    assert fit(target, np.ones((300, size)), np.ones((300, size)), labels) == {}


def test_one_class_only_stays_as_it_is() -> None:
    assert fit(TOXIC, np.ones((300, 1)), np.ones((300, 1)), np.ones(300)) == {}


def test_failed_rows_do_not_count() -> None:
    labels = np.random.default_rng(6).normal(size=100)
    mean = np.where(np.arange(100) < 30, np.nan, 0.0)[:, None]
    assert sum(map(len, fit(LOGD, mean, np.ones((100, 1)), labels)["scores"])) == 70


def test_it_says_what_it_is_of() -> None:
    nothing, folds = np.zeros((50, 1)), np.arange(50) % 4
    made = fit_calibration(nothing, nothing, nothing, folds, [LOGD], all_pairs(4), 0.8)
    assert isinstance(made, Calibration)
    assert (made.coverage, made.left_out) == (0.8, all_pairs(4))
    assert made.interval_names == ["logd"]
