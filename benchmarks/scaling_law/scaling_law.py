"""The scaling law of Uni-Mol2: validation loss by parameters, steps and compute (arXiv 2406.14969, section 4).

L(M, S, C) = am M^bm + as S^bs + ac C^bc, C = M S; M in millions of parameters, S in steps (the paper's: of 1,024
samples). All coefficients are positive and all exponents negative: every part falls towards 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_percentage_error, mean_squared_error, r2_score

FloatArray = NDArray[np.float64]
_STARTS = 24
_HUBER_SCALE = 1e-3  # of log-losses: points farther from the law than 0.1 % count less
_BOUNDS = ((-12.0, 8.0), (-12.0, 1.5))  # of log coefficients, and of log(-exponent)


@dataclass(frozen=True)
class LossPoints:
    """Losses (n,) at parameters (n,), in millions, and steps (n,)."""

    parameters: FloatArray
    steps: FloatArray
    losses: FloatArray

    def __post_init__(self) -> None:
        if not len(self.parameters) == len(self.steps) == len(self.losses):
            raise ValueError("parameters, steps and losses must be of one length")
        if not all((values > 0).all() and np.isfinite(values).all() for values in asdict(self).values()):
            raise ValueError("parameters, steps and losses must be positive and finite; leave other points out")

    def __len__(self) -> int:
        return len(self.losses)

    def __getitem__(self, chosen: Any) -> "LossPoints":
        return LossPoints(self.parameters[chosen], self.steps[chosen], self.losses[chosen])


@dataclass(frozen=True)
class Judgement:
    """How well predictions meet losses: relative mean absolute error, mean squared error, R2, Pearson correlation."""

    rmae: float
    mse: float
    r2: float
    pearson: float

    @classmethod
    def of(cls, predicted: ArrayLike, observed: ArrayLike) -> "Judgement":
        return cls(
            float(mean_absolute_percentage_error(observed, predicted)),
            float(mean_squared_error(observed, predicted)),
            float(r2_score(observed, predicted)),
            float(pearsonr(observed, predicted).statistic),
        )


@dataclass(frozen=True)
class ScalingLaw:
    """The law's six numbers, and predictions from them."""

    am: float
    bm: float
    as_: float
    bs: float
    ac: float
    bc: float

    @classmethod
    def published(cls) -> "ScalingLaw":
        """The paper's fit, as printed.

        Its rounded coefficients give 0.0875 for 1.1B and 0.0885 for 570M at 810,000 steps; the paper quotes 0.0871 and
        0.088, from coefficients with more digits.
        """
        return cls(2.660, -1.137, 1.848, -0.225, 0.588, -1.479)

    def predict(self, parameters: ArrayLike, steps: ArrayLike) -> FloatArray:
        """Loss of a model of so many million parameters after so many steps."""
        to_size, to_steps, to_compute = self.parts(parameters, steps)
        return to_size + to_steps + to_compute

    def parts(self, parameters: ArrayLike, steps: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
        """What is lost to a finite model, to finite training, and to their product."""
        millions, updates = np.asarray(parameters, dtype=np.float64), np.asarray(steps, dtype=np.float64)
        return (
            self.am * millions**self.bm,
            self.as_ * updates**self.bs,
            self.ac * (millions * updates) ** self.bc,
        )

    def judge(self, points: LossPoints) -> Judgement:
        """Judge the law on points, of which it should not have been fitted to any."""
        return Judgement.of(self.predict(points.parameters, points.steps), points.losses)

    def compute_optimal(self, compute: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """The parameters, in millions, and steps with the least loss for C = M S; the paper leaves this open.

        At fixed C the third part is fixed. The first two have their minimum where am bm M^bm = as bs (C / M)^bs,
        that is M = (as bs / (am bm))^(1 / (bm + bs)) C^(bs / (bm + bs)).
        """
        budget = np.asarray(compute, dtype=np.float64)
        total = self.bm + self.bs
        millions = (self.as_ * self.bs / (self.am * self.bm)) ** (1 / total) * budget ** (self.bs / total)
        return millions, budget / millions

    @classmethod
    def fit(cls, points: LossPoints, seed: int = 0, starts: int = _STARTS) -> "ScalingLaw":
        """Robust fit of log-losses (Huber), the best of several random starts in log space.

        Raises:
            ValueError: fewer points than coefficients, or of a single size.
        """
        if len(points) < 6 or len(np.unique(points.parameters)) < 2:
            raise ValueError(f"{len(points)} points of {len(np.unique(points.parameters))} sizes; 6 of 2 are needed")
        random = np.random.default_rng(seed)
        found = [_fit_from(start, points) for start in _starts(points, starts, random)]
        return _law_of(min(found, key=lambda each: each[0])[1])

    @classmethod
    def bootstrap(cls, points: LossPoints, repeats: int = 200, seed: int = 0) -> dict[str, tuple[float, float]]:
        """95 % intervals of each coefficient, by fits to points drawn anew within each size."""
        random = np.random.default_rng(seed)
        start = _vector_of(cls.fit(points, seed))
        laws = [asdict(_law_of(_fit_from(start, points[_redrawn(points, random)])[1])) for _ in range(repeats)]
        return {
            name: tuple(np.percentile([law[name] for law in laws], [2.5, 97.5]).tolist())  # type: ignore[misc]
            for name in laws[0]
        }


def _vector_of(law: ScalingLaw) -> FloatArray:
    coefficients = np.log([law.am, law.as_, law.ac])
    exponents = np.log([-law.bm, -law.bs, -law.bc])
    return np.ravel(np.column_stack([coefficients, exponents]))


def _law_of(vector: FloatArray) -> ScalingLaw:
    (log_am, log_bm), (log_as, log_bs), (log_ac, log_bc) = vector.reshape(3, 2).tolist()
    made = [
        (float(np.exp(log_a)), -float(np.exp(log_b)))
        for log_a, log_b in ((log_am, log_bm), (log_as, log_bs), (log_ac, log_bc))
    ]
    return ScalingLaw(*made[0], *made[1], *made[2])


def _bounds() -> tuple[FloatArray, FloatArray]:
    """Lowest and highest value of each of the six numbers."""
    lowest, highest = np.array([_BOUNDS] * 3).reshape(6, 2).T
    return lowest, highest


def _starts(points: LossPoints, count: int, random: np.random.Generator) -> Iterator[FloatArray]:
    """Each part is given a random share of the mean loss, and a random exponent."""
    scales = [np.median(points.parameters), np.median(points.steps), np.median(points.parameters * points.steps)]
    for _ in range(count):
        shares = random.dirichlet([1, 1, 1]) * points.losses.mean()
        exponents = random.uniform(0.05, 1.5, 3)
        coefficients = np.log(shares) + exponents * np.log(scales)
        vector = np.ravel(np.column_stack([coefficients, np.log(exponents)]))
        lowest, highest = _bounds()
        yield np.clip(vector, lowest + 1e-6, highest - 1e-6)


def _fit_from(start: FloatArray, points: LossPoints) -> tuple[float, FloatArray]:
    def residuals(vector: FloatArray) -> FloatArray:
        return np.log(_law_of(vector).predict(points.parameters, points.steps)) - np.log(points.losses)

    result = least_squares(
        residuals, start, bounds=_bounds(), loss="huber", f_scale=_HUBER_SCALE, x_scale="jac", max_nfev=2000
    )
    return float(result.cost), result.x


def _redrawn(points: LossPoints, random: np.random.Generator) -> NDArray[np.intp]:
    groups = [np.flatnonzero(points.parameters == size) for size in np.unique(points.parameters)]
    return np.concatenate([random.choice(group, len(group)) for group in groups])


def join(many: Sequence[LossPoints]) -> LossPoints:
    """All points of several runs."""
    return LossPoints(*(np.concatenate([getattr(each, name) for each in many]) for name in asdict(many[0])))
