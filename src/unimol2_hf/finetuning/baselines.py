"""Two strong and simple baselines on the same split: descriptors with gradient boosting, ECFP4 with a random forest."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)

from ..configuration_unimol2 import BINARY, REGRESSION
from ..data.splits import TEST, TRAIN, VALID
from ..data.vector_cache import VectorCache, made_once
from ..descriptors import descriptor_names, rdkit_descriptors
from ..molecules import Molecule, molecule_of, remove_hydrogens
from ..targets.metrics import Metrics, Target, metrics_by_target
from ..worker_pool import map_in_order

FloatArray = NDArray[np.floating[Any]]

DESCRIPTOR_BOOSTING, ECFP4_FOREST = "descriptor_boosting", "ecfp4_forest"

_FINGERPRINT_SIZE = 2048
_BOOSTING: dict[str, Any] = {"learning_rate": 0.05, "max_iter": 500}
_UNSTOPPED_ITERATIONS = 100
_TREES = 100


@dataclass(frozen=True)
class BaselineTable:
    """What a baseline learns from and is measured on.

    Attributes:
        molecules: n SMILES or RDKit molecules.
        labels: (n, targets), NaN where missing; a class is its index.
        targets: as `UniMol2Config.targets`.
        split: (n,) of "train", "valid", "test" or "" (unused).
        sample_weight: (n,), of training and validation rows; by default all count alike.
        descriptors: (n, T) of RDKit, as `descriptors_of` gives them; by default they are computed.
    """

    molecules: Sequence[Molecule]
    labels: FloatArray
    targets: Sequence[Target]
    split: NDArray[np.str_]
    sample_weight: FloatArray | None = None
    descriptors: FloatArray | None = None


def baseline_report(table: BaselineTable, seed: int = 0, num_workers: int = 0) -> dict[str, dict[str, Metrics]]:
    """Metrics of the test part by baseline and target; see `metrics_by_target`.

    Args:
        table: molecules, labels and split.
        seed: of the models.
        num_workers: processes for descriptors, and threads for the forest; 0 works in this one.
    """
    return {name: baseline_metrics(name, table, seed, num_workers) for name in BASELINES}


def baseline_metrics(name: str, table: BaselineTable, seed: int = 0, num_workers: int = 0) -> dict[str, Metrics]:
    """Metrics of the test part of one of the baselines by target; arguments as for `baseline_report`."""
    test, training = table.split == TEST, table.labels[table.split == TRAIN]
    predictions = [of_target[test] for of_target in BASELINES[name](table, seed, num_workers)]
    return metrics_by_target(predictions, table.labels[test], table.targets, training)


def descriptor_baseline(table: BaselineTable, seed: int = 0, num_workers: int = 0) -> list[FloatArray]:
    """Predictions of histogram gradient boosting on RDKit's descriptors, one model a target, stopped by the valid part.

    Arguments as for `baseline_report`.

    Returns:
        For each target (n,) values or probabilities of the positive class, or (n, classes); NaN for a molecule that
        cannot be read, and for every one where a target has no training label.
    """
    known = table.descriptors
    features = descriptors_of(table.molecules, num_workers) if known is None else known
    return _predictions(partial(_fit_boosting, seed=seed), features, table)


def fingerprint_baseline(table: BaselineTable, seed: int = 0, num_workers: int = 0) -> list[FloatArray]:
    """Predictions of a random forest on ECFP4 counts folded to 2,048, one forest a target; as `descriptor_baseline`."""
    features = _vectors(ecfp4_counts, table.molecules, num_workers)
    return _predictions(partial(_fit_forest, seed=seed, threads=max(1, num_workers)), features, table)


BASELINES = {DESCRIPTOR_BOOSTING: descriptor_baseline, ECFP4_FOREST: fingerprint_baseline}


def descriptors_of(
    molecules: Sequence[Molecule], num_workers: int = 0, cache: VectorCache | None = None
) -> NDArray[np.float32]:
    """RDKit's descriptors (n, T), from the cache where it has them; NaN for a molecule that cannot be read."""

    def make(rows: list[int]) -> Iterator[tuple[int, NDArray[np.float32] | None]]:
        work = partial(_vector_or_none, rdkit_descriptors)
        for row, vector in map_in_order(work, ((row, molecules[row]) for row in rows), num_workers):
            yield row, None if vector is None else vector[None]

    missing = np.full((1, len(descriptor_names())), np.nan, dtype=np.float32)
    return np.concatenate([missing if each is None else each for each in made_once(molecules, cache, make)])


def ecfp4_counts(molecule: Chem.Mol) -> NDArray[np.float32]:
    """How often each Morgan environment of radius 2 occurs, folded to (2048,)."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=_FINGERPRINT_SIZE)
    return generator.GetCountFingerprintAsNumPy(molecule).astype(np.float32)


def _vectors(
    vector_of: Callable[[Chem.Mol], NDArray[np.float32]], molecules: Iterable[Molecule], num_workers: int
) -> NDArray[np.float32]:
    """Vectors (n, T), NaN for molecules that cannot be read."""
    work = partial(_vector_or_none, vector_of)
    vectors = [vector for _, vector in map_in_order(work, ((None, each) for each in molecules), num_workers)]
    width = next((len(vector) for vector in vectors if vector is not None), 1)
    missing = np.full(width, np.nan, dtype=np.float32)
    return np.stack([missing if vector is None else vector for vector in vectors])


def _vector_or_none(
    vector_of: Callable[[Chem.Mol], NDArray[np.float32]], molecule: Molecule
) -> NDArray[np.float32] | None:
    try:
        return vector_of(remove_hydrogens(molecule_of(molecule)))
    # A MoleculeError is a ValueError; RDKit's own are bare C++ errors. The row report says why a molecule failed.
    except (RuntimeError, ValueError):
        return None


@dataclass(frozen=True)
class _Rows:
    """Features (n, T), labels (n,) and weights (n,) of one target."""

    features: FloatArray
    labels: FloatArray
    weights: FloatArray

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "_Rows":
        return _Rows(self.features[chosen], self.labels[chosen], self.weights[chosen])


_Fit = Callable[[str, _Rows, _Rows], Any]


def _predictions(fit: _Fit, features: FloatArray, table: BaselineTable) -> list[FloatArray]:
    """Fit each target on its labelled training rows, and predict every row that has features."""
    weights = np.ones(len(features)) if table.sample_weight is None else table.sample_weight
    readable = np.asarray(np.isfinite(features).any(axis=1))
    predictions = []
    for target, column in zip(table.targets, table.labels.T, strict=True):
        rows, usable = _Rows(features, column, weights), readable & ~np.isnan(column)
        train, valid = (rows[usable & (table.split == part)] for part in (TRAIN, VALID))
        predictions.append(_outputs(_fitted(fit, target["kind"], train, valid), target, features, readable))
    return predictions


def _fitted(fit: _Fit, kind: str, train: _Rows, valid: _Rows) -> Any:
    """A model, or None without a training label; from labels that are all the same there is nothing to learn."""
    if not len(train.labels):
        return None
    if len(np.unique(train.labels)) > 1:
        return fit(kind, train, valid)
    dummy = DummyRegressor() if kind == REGRESSION else DummyClassifier()
    return dummy.fit(train.features, train.labels)


def _fit_boosting(kind: str, train: _Rows, valid: _Rows, seed: int) -> Any:
    if kind != REGRESSION:
        valid = valid[np.isin(valid.labels, train.labels)]
    model_class = HistGradientBoostingRegressor if kind == REGRESSION else HistGradientBoostingClassifier
    if not len(valid.labels):
        settings = _BOOSTING | {"max_iter": _UNSTOPPED_ITERATIONS}
        model = model_class(early_stopping=False, random_state=seed, **settings)
        return model.fit(train.features, train.labels, train.weights)
    model = model_class(early_stopping=True, random_state=seed, **_BOOSTING)
    held_out = {"X_val": valid.features, "y_val": valid.labels, "sample_weight_val": valid.weights}
    return model.fit(train.features, train.labels, train.weights, **held_out)


def _fit_forest(kind: str, train: _Rows, valid: _Rows, seed: int, threads: int) -> Any:
    settings: dict[str, Any] = {"n_estimators": _TREES, "random_state": seed, "n_jobs": threads}
    if kind == REGRESSION:
        # All features at each split, scikit-learn's default, take ten times as long and are no better.
        model = RandomForestRegressor(max_features=0.1, **settings)
    else:
        model = RandomForestClassifier(**settings)
    return model.fit(train.features, train.labels, train.weights)


def _outputs(model: Any, target: Target, features: FloatArray, readable: NDArray[np.bool_]) -> FloatArray:
    """Of every row: values (n,), probabilities of the positive class (n,), or (n, classes); NaN if not readable."""
    kind = target["kind"]
    shape = () if kind == REGRESSION else (2,) if kind == BINARY else (len(target["classes"]),)
    outputs = np.full((len(features), *shape), np.nan)
    if model is not None and kind == REGRESSION:
        outputs[readable] = model.predict(features[readable])
    elif model is not None:
        outputs[readable] = 0.0
        # The classes of the training labels only.
        outputs[np.ix_(readable, model.classes_.astype(int))] = model.predict_proba(features[readable])
    return outputs[:, 1] if kind == BINARY else outputs
