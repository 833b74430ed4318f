"""scikit-learn's own checks, which feed rows of numbers: here each row of numbers stands for a molecule."""

import hashlib
from typing import Any

import numpy as np
import pytest
from sklearn.utils import Tags
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_array

from unimol2_hf import UniMol2Classifier, UniMol2Embedder, UniMol2Regressor
from unimol2_hf.estimators import embedder
from unimol2_hf.estimators import property as property_module

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MOLECULES = [f"{'C' * (1 + number % 12)}{group}" for number, group in enumerate(["O", "N", "F", "Cl", "S", "Br"] * 12)]
# What cannot hold of molecules, and why.
ONE_COLUMN = "X is one column of molecules: there are no features to count or to name"
MOLECULES_DECIDE = "its rows, scaled or rounded, are other molecules here"
WORDS = "refused by name, in other words than scikit-learn's"
ZERO_WEIGHT = "a row of weight 0 still takes part in the scale of labels and vectors"
EXCLUDED: dict[str, str] = {
    "check_n_features_in": ONE_COLUMN,
    "check_n_features_in_after_fitting": ONE_COLUMN,
    "check_transformer_general": ONE_COLUMN,
    "check_transformer_preserve_dtypes": "vectors are float32, whatever X is",
    "check_regressors_train": MOLECULES_DECIDE,
    "check_classifiers_train": MOLECULES_DECIDE,
    "check_sample_weight_equivalence_on_dense_data": ZERO_WEIGHT,
    "check_all_zero_sample_weights_error": WORDS,
    "check_fit2d_1sample": WORDS,
}


def molecules_of_numbers(X: Any) -> list[str]:
    """One of 72 small molecules for each row."""
    rows = check_array(X, dtype=np.float64)
    digests = (hashlib.blake2b(np.ascontiguousarray(row.round(6)).tobytes(), digest_size=4).digest() for row in rows)
    return [MOLECULES[int.from_bytes(digest, "big") % len(MOLECULES)] for digest in digests]


class _OfNumbers:
    def __sklearn_tags__(self) -> Tags:
        tags: Tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.two_d_array = True
        tags.input_tags.string = False
        tags.input_tags.one_d_array = False
        tags.no_validation = False
        return tags


class Embedder(_OfNumbers, UniMol2Embedder):
    pass


class Regressor(_OfNumbers, UniMol2Regressor):
    pass


class Classifier(_OfNumbers, UniMol2Classifier):
    pass


@pytest.mark.parametrize("kind", [Embedder, Regressor, Classifier])
def test_as_far_as_molecules_allow(kind: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (embedder, property_module):
        monkeypatch.setattr(module, "molecules_in", molecules_of_numbers)
    estimator = kind(num_workers=0, conformer_cache=str(tmp_path))
    results = check_estimator(estimator, on_skip=None, on_fail=None)
    outcomes = {each["check_name"]: each for each in results}
    failed = {name: each["exception"] for name, each in outcomes.items() if each["status"] == "failed"}
    for name, error in failed.items():
        print(name, repr(error)[:200])
    assert set(failed) <= set(EXCLUDED)
    assert sum(each["status"] == "passed" for each in results) >= 25
