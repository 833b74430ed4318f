"""Probabilities of two classes from scores (Platt, 1999)."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

FloatArray = NDArray[np.float64]

_UNPENALISED = 1e6
_LEAST_SLOPE = 1e-3


def fit_platt(scores: FloatArray, classes: FloatArray, weights: FloatArray | None = None) -> tuple[float, float]:
    """Slope and offset that make logits of scores.

    The slope is never negative: scores that rank molecules the wrong way round, as those of few molecules may when each
    is left out, tell nothing, and all molecules get nearly the share of positives.

    Args:
        scores: (n,) of molecules that the scores' maker has not seen.
        classes: (n,) 0 or 1; both occur.
        weights: (n,) what a molecule counts.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=_UNPENALISED, max_iter=1000).fit(scores[:, None], classes, weights)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope < _LEAST_SLOPE:
        share = np.average(classes, weights=weights)
        slope, offset = _LEAST_SLOPE, float(np.log(share / (1 - share)))
    return slope, offset
