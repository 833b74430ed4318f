"""Intervals and calibrated probabilities from predictions of molecules that a member has not seen."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from crepes import ConformalRegressor
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from ..calibration import Calibration, members_without
from ..configuration_unimol2 import BINARY, MULTICLASS, REGRESSION
from .platt import fit_platt

FloatArray = NDArray[np.float64]

# Of a large table's scores about these many, at equal steps of rank in each fold, are kept.
_MOST_SCORES = 999
_FEWEST_LABELS = {REGRESSION: 10, BINARY: 20, MULTICLASS: 20}
_TEMPERATURES = (0.05, 100.0)


def out_of_fold(
    members: FloatArray, folds: NDArray[np.intp], left_out: Sequence[Sequence[int]]
) -> tuple[FloatArray, FloatArray]:
    """Mean and spread (n, outputs) of each molecule over the members that have not seen it.

    Args:
        members: (members, n, outputs) values.
        folds: (n,) of the molecules, from 0.
        left_out: of each member the folds that it has not seen.
    """
    mean, spread = np.full(members.shape[1:], np.nan), np.full(members.shape[1:], np.nan)
    for fold, honest in enumerate(members_without(left_out)):
        rows = folds == fold
        own = members[list(honest)][:, rows]
        mean[rows], spread[rows] = own.mean(axis=0), own.std(axis=0, ddof=1)
    return mean, spread


def fit_calibration(
    mean: FloatArray,
    spread: FloatArray,
    labels: FloatArray,
    folds: NDArray[np.intp],
    targets: Sequence[Mapping[str, Any]],
    left_out: Sequence[Sequence[int]],
    coverage: float,
) -> Calibration:
    """Cross-conformal intervals, normalised by the spread, and calibrated probabilities.

    A score is the error of a molecule, divided by its difficulty, the spread plus its mean over the molecules
    (Papadopoulos et al., J. Artif. Intell. Res. 2011, 40, 815); `Calibration.interval` applies them. A binary target's
    logit gets slope and offset (Platt), a multiclass one's a temperature (Guo et al., arXiv 1706.04599). A target of
    fewer labels than 10, or 20 of classes, gets neither.

    Args:
        mean: (n, outputs) of members that have not seen the molecule; see `out_of_fold`.
        spread: (n, outputs), likewise.
        labels: (n, targets), NaN where missing; a class is its index. They must have chosen nothing of the members.
        folds: (n,) of the molecules, from 0.
        targets: as `UniMol2Config.targets`.
        left_out: of each member the folds that it has not seen.
        coverage: share of new molecules that intervals are to hold.
    """
    widths = [len(target["classes"]) if target["kind"] == MULTICLASS else 1 for target in targets]
    ends = np.cumsum(widths)
    fitted: dict[str, dict[str, Any]] = {}
    for target, start, end, own in zip(targets, ends - widths, ends, labels.T, strict=True):
        rows = ~np.isnan(own) & np.isfinite(mean[:, start:end]).all(axis=1)
        if rows.sum() >= _FEWEST_LABELS[target["kind"]]:
            name, found = str(target["name"]), mean[rows, start:end]
            if target["kind"] == REGRESSION:
                by_fold = [folds[rows] == fold for fold in range(len(members_without(left_out)))]
                fitted[name] = _fit_interval(own[rows], found[:, 0], spread[rows, start], by_fold)
            else:
                fitted[name] = (_fit_slope if target["kind"] == BINARY else _fit_temperature)(own[rows], found)
    return Calibration(coverage, [list(own) for own in left_out], fitted)


def _fit_interval(
    labels: FloatArray, mean: FloatArray, spread: FloatArray, by_fold: Sequence[NDArray[np.bool_]]
) -> dict[str, Any]:
    floor = float(spread.mean()) or 1.0
    errors, difficulties = labels - mean, floor + spread
    step = math.ceil(len(labels) / _MOST_SCORES)
    scores = []
    for own in by_fold:
        found = ConformalRegressor().fit(errors[own], sigmas=difficulties[own]).alphas[::-1] if own.any() else ()
        scores.append([float(f"{score:.6g}") for score in found[step // 2 :: step]])
    return {"floor": floor, "scores": scores}


def _fit_slope(labels: FloatArray, mean: FloatArray) -> dict[str, float]:
    if len(np.unique(labels)) < 2:
        return {}
    slope, offset = fit_platt(mean[:, 0], labels)
    return {"slope": slope, "offset": offset}


def _fit_temperature(labels: FloatArray, mean: FloatArray) -> dict[str, float]:
    classes = labels.astype(int)

    def loss(log_temperature: float) -> float:
        scaled = mean / np.exp(log_temperature)
        return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(classes)), classes]).mean())

    found = minimize_scalar(loss, bounds=tuple(np.log(_TEMPERATURES)), method="bounded")
    return {"temperature": float(np.exp(found.x))}
