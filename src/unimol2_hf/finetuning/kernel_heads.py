"""Kernel heads fitted in closed form: Gaussian kernel ridge regression, width and ridge chosen by leaving groups out.

Arrays in, arrays out: whatever vectors a molecule has.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, lapack
from sklearn.linear_model import LogisticRegression

from ..configuration_unimol2 import MULTICLASS, REGRESSION
from ..modeling_unimol2 import LARGEST_FEATURE
from ..uncertainty.platt import fit_platt

FloatArray = NDArray[np.float64]
Rows = NDArray[np.intp]
Target = Mapping[str, Any]

MOST_CENTERS = 8192
# Squared widths in units of the median squared distance, ridges in units of the labels' variance.
WIDTHS = (0.25, 0.5, 1.0, 2.0)
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# A ridge is the variance of the noise, whatever the number of molecules: a part of them tells it as well.
_ROWS_TO_CHOOSE_BY, _ROWS_TO_SCALE_BY = 1024, 4096
_JITTER = 1e-6
_UNLIKELY = -10.0  # logit


@dataclass(frozen=True)
class KernelHead:
    """What `UniMol2KernelHead` is made of.

    Attributes:
        mean, std: (F,) of the features.
        centers: (C, F), standardised.
        widths: (members,) squared.
        weights: (members, C, outputs).
        bias: (members, outputs).
    """

    mean: FloatArray
    std: FloatArray
    centers: FloatArray
    widths: FloatArray
    weights: FloatArray
    bias: FloatArray

    def predict(self, features: FloatArray) -> FloatArray:
        """Outputs (members, n, outputs): of a regression target standardised values, of classes logits."""
        squares = _squared_distances(_standardized(features, self.mean, self.std), self.centers)
        kernels = (np.exp(-squares / width) for width in self.widths)
        each = zip(kernels, self.weights, self.bias, strict=True)
        return np.stack([kernel @ weights + bias for kernel, weights, bias in each])


@dataclass(frozen=True)
class _Problem:
    """One set of rows, and the columns of labels that all of them have.

    Attributes:
        rows: indices of the molecules.
        columns: of the outputs.
        values: (rows, columns) to regress on, centred.
        classes: (rows,) indices of classes; None for regression targets.
        noise: (rows,) what each row's ridge is multiplied by.
        groups: (rows,) of rows that are left out together.
    """

    rows: Rows
    columns: list[int]
    values: FloatArray
    classes: NDArray[np.intp] | None
    noise: FloatArray
    groups: Rows

    def part(self, count: int, generator: np.random.Generator) -> "_Problem":
        """At most so many of its rows."""
        if len(self.rows) <= count:
            return self
        drawn = np.sort(generator.choice(len(self.rows), count, replace=False))
        classes = None if self.classes is None else self.classes[drawn]
        return _Problem(
            self.rows[drawn], self.columns, self.values[drawn], classes, self.noise[drawn], self.groups[drawn]
        )


def fit_kernel_head(
    features: FloatArray,
    labels: FloatArray,
    targets: Sequence[Target],
    members: Sequence[Rows],
    seed: int = 0,
    groups: Rows | None = None,
    row_weights: FloatArray | None = None,
) -> KernelHead:
    """Fit a head for all targets; of an ensemble each member on rows of its own.

    Each member chooses a width and each of its targets a ridge by the error of predictions for groups that are left
    out, in closed form (absolute on standardised labels, of classes squared), and uses all its rows. Classes are
    regressed on as 0 and 1, one against the rest; a logistic regression on such predictions makes logits of that
    (Platt, 1999), which goes into the weights.

    Args:
        features: (n, F).
        labels: (n, targets): standardised values, or indices of classes; NaN where missing.
        targets: as `UniMol2Config.targets`.
        members: rows that each member is fitted on.
        seed: of the centres that are drawn where there are more than 8,192 rows.
        groups: (n,) of molecules that are like each other (one scaffold); by default each stands alone.
        row_weights: (n,) what a row counts.
    """
    used = np.unique(np.concatenate(members))
    mean, std = features[used].mean(axis=0), features[used].std(axis=0)
    # What does not vary tells nothing, and must not be blown up where it does at prediction.
    std = np.where(std > 1e-6 * (1 + np.abs(mean)), std, 1.0)
    generator = np.random.default_rng(seed)
    chosen = used if len(used) <= MOST_CENTERS else np.sort(generator.choice(used, MOST_CENTERS, replace=False))
    scaled = _standardized(features, mean, std)
    sample = generator.permutation(chosen)[:_ROWS_TO_CHOOSE_BY]
    apart = np.triu_indices(len(sample), 1)
    median = float(np.median(_squared_distances(scaled[sample], scaled[sample])[apart]))
    sizes = [len(target["classes"]) if target["kind"] == MULTICLASS else 1 for target in targets]
    weights = np.ones(len(labels)) if row_weights is None else row_weights / row_weights[used].mean()
    alike = np.arange(len(labels), dtype=np.intp) if groups is None else groups
    fit = _Fit(scaled, chosen, median or 1.0, sum(sizes), generator)
    found = [fit.member(_problems(labels, targets, sizes, rows, weights, alike)) for rows in members]
    widths, of_centers, bias = (np.stack(part) for part in zip(*found, strict=True))
    return KernelHead(mean, std, scaled[chosen], widths, of_centers, bias)


def _standardized(features: FloatArray, mean: FloatArray, std: FloatArray) -> FloatArray:
    clipped: FloatArray = np.clip((features - mean) / std, -LARGEST_FEATURE, LARGEST_FEATURE)
    return clipped


def _squared_distances(features: FloatArray, others: FloatArray) -> FloatArray:
    """(n, m); as a matrix product, which SciPy's is not, twenty times as fast."""
    squares = -2 * features @ others.T
    squares += (features**2).sum(axis=1)[:, None]
    squares += (others**2).sum(axis=1)
    return np.maximum(squares, 0, out=squares)


def _problems(
    labels: FloatArray, targets: Sequence[Target], sizes: Sequence[int], rows: Rows, weights: FloatArray, groups: Rows
) -> list[_Problem]:
    """Regression targets that miss the same labels share their matrices; a target of classes stands alone."""
    problems: dict[bytes, _Problem] = {}
    first = 0
    for target, size, column in zip(targets, sizes, labels.T, strict=True):
        present = rows[~np.isnan(column[rows]) & (weights[rows] > 0)]
        own, noise, columns = column[present], 1 / weights[present], list(range(first, first + size))
        first += size
        if target["kind"] != REGRESSION:
            classes = own.astype(np.intp)
            values = (classes[:, None] == np.arange(2 if size == 1 else size)).astype(np.float64)
            if target.get("class_weights"):
                noise = noise / np.asarray(target["class_weights"])[classes]
            values = values[:, 1:] if size == 1 else values
            key = str(target["name"]).encode()
            problems[key] = _Problem(present, columns, values, classes, noise, groups[present])
            continue
        key = b"\0" + present.tobytes()
        known = problems.get(key)
        values = own[:, None] if known is None else np.column_stack([known.values, own])
        columns = (known.columns if known else []) + columns
        problems[key] = _Problem(present, columns, values, None, noise, groups[present])
    return list(problems.values())


class _Fit:
    """The fit of one member after the other on the same scaled features (n, F)."""

    def __init__(
        self, features: FloatArray, centers: Rows, median: float, outputs: int, generator: np.random.Generator
    ) -> None:
        self._features, self._centers, self._median = features, centers, median
        self._outputs, self._generator = outputs, generator

    def member(self, problems: list[_Problem]) -> tuple[float, FloatArray, FloatArray]:
        """Squared width, weights (C, outputs) and bias (outputs,)."""
        width, ridges = self._chosen(problems)
        weights, bias = np.zeros((len(self._centers), self._outputs)), np.zeros(self._outputs)
        for problem, of_columns in zip(problems, ridges, strict=True):
            if len(problem.rows):
                self._solve(problem, width, of_columns, weights, bias)
        return width, weights, bias

    def _chosen(self, problems: list[_Problem]) -> tuple[float, list[FloatArray]]:
        """The width of least error, a mean over the outputs, and for each problem the ridge of each column."""
        parts = [problem.part(_ROWS_TO_CHOOSE_BY, self._generator) for problem in problems]
        squares = [_squared_distances(self._features[part.rows], self._features[part.rows]) for part in parts]
        best: tuple[float, float, list[FloatArray]] = (np.inf, self._median, [])
        for width in (multiple * self._median for multiple in WIDTHS):
            errors = [
                _errors(part, np.exp(-square / width)) for part, square in zip(parts, squares, strict=True)
            ]  # each (ridges, columns)
            total = float(np.mean([error.min(axis=0).mean() for error in errors]))
            if not best[2] or total < best[0]:
                best = (total, width, [np.array(RIDGES)[error.argmin(axis=0)] for error in errors])
        return best[1], best[2]

    def _kernel(self, rows: Rows, others: Rows, width: float) -> FloatArray:
        return np.exp(-_squared_distances(self._features[rows], self._features[others]) / width)

    def _solve(
        self, problem: _Problem, width: float, ridges: FloatArray, weights: FloatArray, bias: FloatArray
    ) -> None:
        """Put the problem's part into weights (C, outputs) and bias (outputs,)."""
        center = _center(problem)
        found = np.zeros((len(self._centers), len(problem.columns)))
        own = np.isin(self._centers, problem.rows)
        exact = own.sum() == len(problem.rows)
        kernel = self._kernel(problem.rows, problem.rows, width) if exact else None
        for ridge in np.unique(ridges):
            columns = ridges == ridge
            wanted = (problem.values - center)[:, columns]
            if kernel is not None:
                factor = cho_factor(_with_ridges(kernel, ridge * problem.noise), overwrite_a=True)
                solved = cho_solve(factor, wanted)
            else:
                solved = self._solve_reduced(problem, self._centers[own], width, ridge, wanted)
            found[np.ix_(own, columns)] = solved
        if problem.classes is None:
            slope, offset = np.eye(len(problem.columns)), center
        else:
            slope, offset = self._logits(problem.part(_ROWS_TO_SCALE_BY, self._generator), width, ridges, center)
        weights[:, problem.columns], bias[problem.columns] = found @ slope, offset

    def _solve_reduced(
        self, problem: _Problem, centers: Rows, width: float, ridge: float, wanted: FloatArray
    ) -> FloatArray:
        """All rows, but kernels around some of them only (subset of regressors; Rasmussen and Williams, chapter 8)."""
        between = self._kernel(centers, centers, width)
        between[np.diag_indices_from(between)] += _JITTER
        gram, right = ridge * between, np.zeros((len(centers), wanted.shape[1]))
        for start in range(0, len(problem.rows), MOST_CENTERS):
            part = slice(start, start + MOST_CENTERS)
            kernel = self._kernel(problem.rows[part], centers, width) / problem.noise[part, None]
            gram += kernel.T @ (kernel * problem.noise[part, None])
            right += kernel.T @ wanted[part]
        return np.asarray(cho_solve(cho_factor(gram, overwrite_a=True), right))

    def _logits(
        self, part: _Problem, width: float, ridges: FloatArray, center: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Slope (columns, columns) and offset (columns,) that make logits of regressed classes."""
        assert part.classes is not None
        outputs = len(part.columns)
        if len(np.unique(part.classes)) < 2:
            share = (np.bincount(part.classes, minlength=max(2, outputs)) + 1) / (len(part.classes) + 2)
            logits = np.log(share)
            return np.zeros((outputs, outputs)), logits[1:] - logits[:1] if outputs == 1 else logits
        kernel = self._kernel(part.rows, part.rows, width)
        scores = part.values - _left_out_residuals(part, kernel, ridges, center)
        if outputs == 1:
            factor, shift = fit_platt((scores - center)[:, 0], part.values[:, 0], 1 / part.noise)
            return np.array([[factor]]), np.array([shift])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = LogisticRegression(max_iter=1000).fit(scores - center, part.classes, 1 / part.noise)
        found, offsets = model.coef_, model.intercept_
        if len(model.classes_) == 2:
            found, offsets = np.vstack([-found, found]) / 2, np.concatenate([-offsets, offsets]) / 2
        # Classes that none of these molecules has stay unlikely.
        slope, offset = np.zeros((outputs, outputs)), np.full(outputs, _UNLIKELY)
        slope[:, model.classes_], offset[model.classes_] = found.T, offsets
        return slope, offset


def _center(problem: _Problem) -> FloatArray:
    return np.average(problem.values, axis=0, weights=1 / problem.noise)


def _left_out_residuals(problem: _Problem, kernel: FloatArray, ridges: FloatArray, center: FloatArray) -> FloatArray:
    """Label less prediction (rows, columns) of a fit without the row's group.

    Of a group G it is the solution of (K + ridge)^-1_GG r = alpha_G (Rasmussen and Williams, section 5.4.2, in blocks).
    """
    wanted = problem.values - center
    residuals = np.empty_like(wanted)
    groups, sizes = np.unique(problem.groups, return_inverse=True, return_counts=True)[1:]
    alone = sizes[groups] == 1
    together = [np.flatnonzero(groups == group) for group in np.flatnonzero(sizes > 1)]
    for ridge in np.unique(ridges):
        inverse = _inverse(kernel, ridge * problem.noise)
        columns = ridges == ridge
        found = inverse @ wanted[:, columns]
        found[alone] /= np.diag(inverse)[alone, None]
        for rows in together:
            found[rows] = np.linalg.solve(inverse[np.ix_(rows, rows)], found[rows])
        residuals[:, columns] = found
    return residuals


def _with_ridges(kernel: FloatArray, ridges: FloatArray) -> FloatArray:
    matrix = kernel.copy()
    matrix[np.diag_indices_from(matrix)] += ridges
    return matrix


def _inverse(kernel: FloatArray, ridges: FloatArray) -> FloatArray:
    factor, _ = lapack.dpotrf(_with_ridges(kernel, ridges), lower=1, overwrite_a=1)
    # Of the symmetric inverse the lower half; the upper is zero.
    half, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    inverse: FloatArray = half + half.T
    inverse[np.diag_indices_from(inverse)] /= 2
    return inverse


def _errors(part: _Problem, kernel: FloatArray) -> FloatArray:
    """Mean leave-one-out error (ridges, columns) of each ridge."""
    columns = len(part.columns)
    if not len(part.rows):
        return np.zeros((len(RIDGES), columns))
    weights, center = 1 / part.noise, _center(part)
    errors = []
    for ridge in RIDGES:
        residuals = _left_out_residuals(part, kernel, np.full(columns, ridge), center)
        measured = np.abs(residuals) if part.classes is None else residuals**2
        errors.append(np.average(measured, axis=0, weights=weights))
    return np.stack(errors)
