"""Baselines learn from the training part alone, whatever the kind of target, and answer NaN where they know nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rdkit import Chem

from unimol2_hf.finetuning.baselines import (
    BASELINES,
    DESCRIPTOR_BOOSTING,
    BaselineTable,
    baseline_report,
    ecfp4_counts,
)

SMILES = [
    *(Path(__file__).parents[1] / "files" / "mixed_64.smi").read_text().split(),
    *("C" * length + "O" * oxygens for length in range(1, 21) for oxygens in (0, 1)),
]
SIZES = np.array([Chem.MolFromSmiles(smiles).GetNumHeavyAtoms() for smiles in SMILES], dtype=float)
SPLIT = np.array((["train"] * 6 + ["valid", "test"]) * (len(SMILES) // 8))
BAD = "C1CC"

REGRESSION: dict[str, Any] = {"name": "size", "kind": "regression"}
BINARY: dict[str, Any] = {"name": "large", "kind": "binary"}
MULTICLASS: dict[str, Any] = {"name": "class", "kind": "multiclass", "classes": ["small", "middle", "large", "huge"]}
TARGETS = [REGRESSION, BINARY, MULTICLASS]
LABELS = np.stack([SIZES, SIZES > 12, np.digitize(SIZES, [8, 16])], axis=1)
TABLE = BaselineTable(SMILES, LABELS, TARGETS, SPLIT)

each_baseline = pytest.mark.parametrize("name", BASELINES)


def predicted(name: str, seed: int = 0, num_workers: int = 0, **changes: Any) -> Any:
    return BASELINES[name](replace(TABLE, **changes), seed, num_workers)


def as_columns(predictions: list[NDArray[np.floating[Any]]]) -> NDArray[np.floating[Any]]:
    return np.column_stack(predictions)


def test_there_is_a_row_for_each_molecule() -> None:
    assert len(SPLIT) == len(SMILES) == 104


@each_baseline
def test_learns_every_kind(name: str) -> None:
    values, share, shares = predicted(name)
    assert (values.shape, share.shape, shares.shape) == ((104,), (104,), (104, 4))
    test = SPLIT == "test"
    assert np.abs(values - SIZES)[test].mean() < 0.6 * np.abs(SIZES - SIZES.mean())[test].mean()
    large = LABELS[:, 1] == 1
    assert share[test & large].mean() - share[test & ~large].mean() > 0.3
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert (shares.argmax(axis=1) == LABELS[:, 2])[test].mean() > 0.6
    # A class without a training label.
    assert not shares[:, 3].any()


@each_baseline
def test_other_parts_do_not_teach(name: str) -> None:
    changed = LABELS.copy()
    changed[SPLIT == "test"] = 0
    np.testing.assert_array_equal(as_columns(predicted(name, labels=changed)), as_columns(predicted(name)))


@each_baseline
def test_molecules_that_cannot_be_read(name: str) -> None:
    molecules: list[Any] = list(SMILES)
    molecules[0], molecules[7] = BAD, (np.array([6]), np.zeros((1, 3)))
    columns = as_columns(predicted(name, molecules=molecules))
    assert np.flatnonzero(np.isnan(columns).all(axis=1)).tolist() == [0, 7]
    assert np.isfinite(np.delete(columns, [0, 7], axis=0)).all()


@each_baseline
def test_missing_labels_teach_nothing(name: str) -> None:
    odd = np.arange(104) % 2 == 1
    holes, elsewhere = LABELS.copy(), SPLIT.copy()
    holes[odd], elsewhere[odd] = np.nan, ""
    expected = as_columns(predicted(name, split=elsewhere))
    np.testing.assert_array_equal(as_columns(predicted(name, labels=holes)), expected)


@each_baseline
def test_weights_count(name: str) -> None:
    odd, test = np.arange(104) % 2 == 1, SPLIT == "test"
    wrong = np.where(odd & ~test, 1000.0, SIZES)[:, None]
    weighted = predicted(name, labels=wrong, targets=[REGRESSION], sample_weight=1.0 - odd)[0]
    unweighted = predicted(name, labels=wrong, targets=[REGRESSION])[0]
    assert np.abs(weighted - SIZES)[test].mean() < 0.1 * np.abs(unweighted - SIZES)[test].mean()


@each_baseline
def test_labels_that_say_nothing(name: str) -> None:
    train = SPLIT == "train"
    labels = np.stack([np.where(train, 3.0, SIZES), np.where(train, np.nan, 1), np.full(104, 2.0)], axis=1)
    values, share, shares = predicted(name, labels=labels)
    assert set(values) == {3.0}
    assert np.isnan(share).all()
    np.testing.assert_array_equal(shares, np.tile([0.0, 0.0, 1.0, 0.0], (104, 1)))


@pytest.mark.parametrize("validation", ["another class", "no label"])
def test_a_validation_part_that_cannot_stop_it(validation: str) -> None:
    labels = LABELS[:, 2:].copy()
    labels[SPLIT == "valid"] = 3 if validation == "another class" else np.nan
    shares = predicted(DESCRIPTOR_BOOSTING, labels=labels, targets=[MULTICLASS])[0]
    np.testing.assert_allclose(shares.sum(axis=1), 1)


@each_baseline
def test_workers_change_nothing(name: str) -> None:
    alone = as_columns(predicted(name, seed=3))
    np.testing.assert_allclose(as_columns(predicted(name, seed=3, num_workers=2)), alone, rtol=1e-12)


def test_hydrogens_that_are_written_do_not_count() -> None:
    assert ecfp4_counts(Chem.MolFromSmiles("CCO")).sum() == 6
    with_hydrogens = [Chem.AddHs(Chem.MolFromSmiles(smiles)) for smiles in SMILES]
    np.testing.assert_array_equal(
        as_columns(predicted(DESCRIPTOR_BOOSTING, molecules=with_hydrogens)), as_columns(predicted(DESCRIPTOR_BOOSTING))
    )


def test_the_report_is_of_the_test_part() -> None:
    molecules = [*SMILES[:7], BAD, *SMILES[8:]]
    report = baseline_report(replace(TABLE, molecules=molecules))
    assert list(report) == list(BASELINES)
    for name, metrics in report.items():
        assert list(metrics) == ["size", "large", "class"]
        assert {each["count"] for each in metrics.values()} == {12}
        test = (SPLIT == "test") & (np.arange(104) != 7)
        values = predicted(name, molecules=molecules)[0]
        assert metrics["size"]["mae"] == pytest.approx(np.abs(values - SIZES)[test].mean())
        low, high = metrics["size"]["mae_interval"]
        assert low < metrics["size"]["mae"] < high
        training_mean = SIZES[SPLIT == "train"].mean()
        assert metrics["size"]["baseline_mae"] == pytest.approx(np.abs(SIZES - training_mean)[test].mean())
