"""Intervals, spreads and calibrated probabilities, applied by hand and by the functions that pipelines call."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimol2_hf import ModelError, UniMol2Config
from unimol2_hf.calibration import (
    CALIBRATION_FILE,
    Calibration,
    conformal_rank,
    load_calibration,
    members_without,
    predict_target,
    property_result,
    save_calibration,
)
from unimol2_hf.uncertainty.folds import all_pairs, neighbouring_pairs

LOGD: dict[str, Any] = {"name": "logd", "kind": "regression"}
TOXIC: dict[str, Any] = {"name": "toxic", "kind": "binary", "classes": ["no", "yes"]}
PHASE: dict[str, Any] = {"name": "phase", "kind": "multiclass", "classes": ["gas", "liquid", "solid"]}
FITTED = Calibration(
    0.9,
    neighbouring_pairs(3),
    {
        "logd": {"floor": 0.5, "scores": [[0.1 * rank for rank in range(start, 20, 3)] for start in (1, 2, 3)]},
        "toxic": {"slope": 0.5, "offset": -1.0},
        "phase": {"temperature": 2.0},
    },
)


@given(st.integers(1, 2000), st.floats(0.01, 0.999))
def test_a_rank_is_the_conformal_quantile(count: int, coverage: float) -> None:
    found = conformal_rank(count, coverage)
    if found is None:
        assert count < math.ceil((count + 1) * coverage)
    else:
        # The rank of a new score among all is uniform: so many of n + 1 places lie at or below it.
        assert found >= (count + 1) * coverage - 1e-6 > found - 1 - 1e-6


def test_too_few_scores_hold_nothing() -> None:
    assert conformal_rank(8, 0.9) is None
    assert conformal_rank(9, 0.9) == 9
    assert conformal_rank(0, 0.5) is None


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_of_each_fold_some_members_know_nothing(folds: int) -> None:
    for left_out, members, honest in (
        (all_pairs(folds), folds * (folds - 1) // 2, folds - 1),
        (neighbouring_pairs(folds), folds, 2),
    ):
        assert len(left_out) == members
        unseen = members_without(left_out)
        assert [len(own) for own in unseen] == [honest] * folds
        assert all(fold in left_out[member] for fold, own in enumerate(unseen) for member in own)


class TestRegression:
    def test_by_hand(self) -> None:
        # Two conformers, three members: their means are 1.5, 2.5 and 4.5.
        logits = np.array([[1.0, 2.0, 4.0], [2.0, 3.0, 5.0]])[..., None]
        found = predict_target(LOGD, logits, FITTED)
        means = np.array([1.5, 2.5, 4.5])
        assert found.values.tolist() == pytest.approx([means.mean()])
        assert found.spread == pytest.approx(means.std(ddof=1))
        # Fold 0 is left out by members 0 and 2, fold 1 by 0 and 1, fold 2 by 1 and 2.
        ends = []
        for scores, own in zip(FITTED.targets["logd"]["scores"], ([0, 2], [0, 1], [1, 2]), strict=True):
            ends += [(means[own].mean(), score * (0.5 + means[own].std(ddof=1))) for score in scores]
        # The 18th of 19 scores ends an interval of 90 %.
        lower, upper = (sorted(mean + sign * half for mean, half in ends) for sign in (-1, 1))
        assert found.interval == pytest.approx((lower[1], upper[17]))

    @given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), st.floats(0.05, 0.95))
    def test_the_interval_holds_the_value(self, members: list[float], coverage: float) -> None:
        found = predict_target(LOGD, np.array(members).reshape(1, 3, 1), FITTED, coverage)
        assert found.interval is not None
        assert found.interval[0] <= found.values[0] <= found.interval[1]

    def test_another_coverage(self) -> None:
        logits = np.zeros((1, 3, 1))
        narrow, wide = (predict_target(LOGD, logits, FITTED, coverage).interval for coverage in (0.5, 0.95))
        assert narrow == pytest.approx((-0.5, 0.5))
        assert wide == pytest.approx((-0.95, 0.95))
        assert predict_target(LOGD, logits, FITTED, 0.99).interval is None

    def test_a_single_model_has_neither(self) -> None:
        found = predict_target(LOGD, np.ones((2, 1, 1)), None)
        assert (found.values.tolist(), found.spread, found.interval) == ([1.0], None, None)

    def test_an_ensemble_without_folds_has_a_spread(self) -> None:
        found = predict_target(LOGD, np.array([[[1.0], [3.0]]]), None)
        assert found.spread == pytest.approx(math.sqrt(2))
        assert found.interval is None


class TestClasses:
    def test_binary_by_hand(self) -> None:
        logits = np.array([[0.0, 2.0, 4.0], [1.0, 1.0, 1.0]])[..., None]

        def sure(logit: float) -> float:
            return 1 / (1 + math.exp(1.0 - 0.5 * logit))

        found = predict_target(TOXIC, logits, FITTED)
        # Of each conformer the mean over the members, then of the conformers the mean.
        assert found.values.tolist() == pytest.approx([(sure(2.0) + sure(1.0)) / 2])
        members = [(sure(a) + sure(1.0)) / 2 for a in (0.0, 2.0, 4.0)]
        assert found.spread == pytest.approx(np.std(members, ddof=1))
        assert found.interval is None

    def test_multiclass_by_hand(self) -> None:
        logits = np.array([[[0.0, 2.0, 4.0], [0.0, 0.0, 6.0]]])
        exponents = np.exp(np.array([0.0, 1.0, 5.0]) / 2)
        found = predict_target(PHASE, logits, FITTED)
        assert found.values.tolist() == pytest.approx((exponents / exponents.sum()).tolist())
        own = [np.exp(each[2] / 2) / np.exp(each / 2).sum() for each in logits[0]]
        assert found.spread == pytest.approx(np.std(own, ddof=1))

    def test_far_logits_are_finite(self) -> None:
        for logit in (-1e4, 1e4):
            assert np.isfinite(predict_target(TOXIC, np.full((1, 1, 1), logit), FITTED).values).all()
            assert np.isfinite(predict_target(PHASE, np.full((1, 1, 3), logit), None).values).all()


def test_a_result_of_all_kinds() -> None:
    config = UniMol2Config(num_members=3)
    config.set_targets([LOGD, PHASE, TOXIC])
    logits = np.arange(30.0).reshape(2, 3, 5)
    result = property_result(config, logits, FITTED)
    assert list(result) == ["predictions", "probabilities", "spreads", "intervals"]
    assert result["predictions"]["phase"] == "solid"
    assert sum(result["probabilities"]["phase"].values()) == pytest.approx(1)
    assert list(result["spreads"]) == ["logd", "phase", "toxic"]
    lower, upper = result["intervals"]["logd"]
    assert lower < result["predictions"]["logd"] < upper
    failed = property_result(config, None, FITTED)
    assert list(failed) == list(result)
    assert set(failed.values()) == {None}


class TestFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        assert load_calibration(tmp_path) is None
        save_calibration(tmp_path, FITTED)
        assert load_calibration(tmp_path) == FITTED

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 2, "coverage": 0.9}', "\udcff"])
    def test_a_damaged_file_is_named(self, text: str, tmp_path: Path) -> None:
        (tmp_path / CALIBRATION_FILE).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ModelError, match=r"calibration\.json is damaged"):
            load_calibration(tmp_path)

    def test_a_newer_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / CALIBRATION_FILE).write_text(json.dumps({**FITTED.to_dict(), "version": 3}))
        with pytest.raises(ModelError, match="newer unimol2-hf"):
            load_calibration(tmp_path)
        (tmp_path / CALIBRATION_FILE).write_text(json.dumps({**FITTED.to_dict(), "version": 1}))
        with pytest.raises(ModelError, match="older unimol2-hf"):
            load_calibration(tmp_path)
