"""Graph-level targets of pretraining: columns of a library, standardised and winsorised, missing values left out.

The paper's task (arXiv 2406.14969, section 3) gives the atoms losses and the molecule none. Descriptors (as in arXiv
2506.15792), assay or quantum-chemical columns, a teacher's vectors: any numeric column may be predicted besides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.conformer_library import ConformerLibrary
from ..errors import TableError

FloatArray = NDArray[np.float32]

WINSORIZED_AT = 6.0  # standard deviations, as arXiv 2506.15792
# Clipping changes the spread by which it clips; after so many turns neither moves any more.
_TURNS = 10
# Enough molecules for a mean and a spread, in a library of any size.
_MOST_SHARDS = 64


@dataclass(frozen=True)
class TargetScale:
    """How the columns of a library become standardised targets.

    Attributes:
        names: columns, one block of targets each.
        sizes: targets of each block.
        mean, std: (T,) float32, block after block.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    mean: FloatArray
    std: FloatArray

    def standardised(self, values: FloatArray) -> FloatArray:
        """Raw targets (..., T) in standard deviations from the mean, winsorised; NaN stays NaN, infinity becomes it."""
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = (values - self.mean) / self.std
        scaled[~np.isfinite(scaled)] = np.nan
        return np.clip(scaled, -WINSORIZED_AT, WINSORIZED_AT, out=scaled)

    def blocks(self) -> list[dict[str, Any]]:
        """As `UniMol2Config.graph_targets` holds it."""
        ends = np.cumsum(self.sizes)[:-1]
        parts = zip(self.names, np.split(self.mean, ends), np.split(self.std, ends), strict=True)
        return [{"name": name, "mean": mean.tolist(), "std": std.tolist()} for name, mean, std in parts]

    @classmethod
    def of_blocks(cls, blocks: Sequence[Mapping[str, Any]]) -> "TargetScale":
        """From `UniMol2Config.graph_targets`."""
        return cls(
            tuple(block["name"] for block in blocks),
            tuple(len(block["mean"]) for block in blocks),
            np.array([value for block in blocks for value in block["mean"]], dtype=np.float32),
            np.array([value for block in blocks for value in block["std"]], dtype=np.float32),
        )


def scale_of_library(library: ConformerLibrary) -> TargetScale:
    """Mean and spread of the targets that a library was opened with, over evenly spaced shards.

    Raises:
        TableError: a column is lacking or holds something else than numbers, or none.
    """
    columns = library.target_values(_MOST_SHARDS)
    return fitted_scale(library.targets, [column.shape[1] for column in columns], np.concatenate(columns, axis=1))


def fitted_scale(names: Sequence[str], sizes: Sequence[int], values: NDArray[np.floating[Any]]) -> TargetScale:
    """Mean and standard deviation of raw targets (rows, T) after clipping to six of the latter, until both agree.

    A target that does not vary gets the deviation 1: it is then 0 everywhere.

    Raises:
        TableError: a target without any finite value.
    """
    with np.errstate(invalid="ignore"):
        columns = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    empty = np.isnan(columns).all(0)
    if empty.any():
        block = np.repeat(np.arange(len(sizes)), sizes)[empty][0]
        raise TableError(f"the column {names[block]!r} has a target without any number; leave it out of the targets")
    mean, std = np.nanmean(columns, 0), np.nanstd(columns, 0)
    for _ in range(_TURNS):
        clipped = np.clip(columns, mean - WINSORIZED_AT * std, mean + WINSORIZED_AT * std)
        mean, std = np.nanmean(clipped, 0), np.nanstd(clipped, 0)
    constant = std <= 1e-7 * np.maximum(1.0, np.abs(mean))
    std[constant] = 1.0
    return TargetScale(tuple(names), tuple(sizes), mean.astype(np.float32), std.astype(np.float32))
