"""Which sample comes when: a deterministic plan over shards, from which any step can be found again.

An epoch draws as many samples as the library has molecules, with the probability of their scaffolds (arXiv 2406.14969,
section 3), and visits them in an order in which few shards are in use at a time. Steps count through the epochs.
"""

import numpy as np
from numpy.typing import NDArray

from ..data.conformer_library import LibraryIndex
from ..errors import SettingsError

IntArray = NDArray[np.int64]
_PLAN_STREAM = 7  # keeps the plan's random numbers apart from the collator's


def scaffold_probabilities(counts: NDArray[np.integer], temperature: float) -> NDArray[np.float64]:
    """softmax(P / temperature) of the scaffolds' frequencies P = N_i / sum N; the paper's temperature is 0.005.

    Raises:
        SettingsError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise SettingsError(f"the scaffold temperature is {temperature}; use a positive one")
    scores = counts / counts.sum() / temperature
    weights = np.exp(scores - scores.max())
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


class SamplingPlan:
    """The order of all samples.

    Args:
        index: of the library.
        seed: of draws and order.
        temperature: of the scaffolds' softmax; None draws every molecule once an epoch.
        open_shards: shards whose molecules are mixed; more means a better mixture and more memory.
        held_out: rows that are never drawn.
    """

    def __init__(
        self,
        index: LibraryIndex,
        seed: int = 0,
        temperature: float | None = 0.005,
        open_shards: int = 8,
        held_out: IntArray | None = None,
    ) -> None:
        if open_shards < 1:
            raise SettingsError(f"open_shards is {open_shards}; use at least 1")
        kept = np.ones(len(index), dtype=bool)
        kept[[] if held_out is None else held_out] = False
        self._rows = np.flatnonzero(kept)
        if not len(self._rows):
            raise SettingsError(f"no molecule is left to draw: {len(index)} usable ones, all held out")
        self._index, self._seed, self._open_shards = index, seed, open_shards
        self._shard_ends = np.cumsum(index.shard_sizes)
        self._shard_starts = self._shard_ends - np.array(index.shard_sizes)
        self._temperature = temperature
        self._orders: dict[int, IntArray] = {}
        _, self._members, counts = np.unique(index.scaffolds[self._rows], return_inverse=True, return_counts=True)
        # Of each scaffold: by the softmax, or by its molecules' number.
        self._probabilities = (
            counts / counts.sum() if temperature is None else scaffold_probabilities(counts, temperature)
        )
        self._row_probabilities = (self._probabilities / counts)[self._members]

    def __len__(self) -> int:
        """Samples of an epoch: as many as there are molecules to draw from."""
        return len(self._rows)

    def largest_scaffold_share(self) -> float:
        """The part of all draws that the most drawn scaffold gets."""
        return float(self._probabilities.max())

    def samples(self, first: int, count: int) -> IntArray:
        """Row numbers of the samples `first` to `first + count - 1`, counted through all epochs."""
        parts = []
        while count:
            epoch, place = divmod(first, len(self))
            part = self._order(epoch)[place : place + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def shard_of(self, rows: IntArray) -> IntArray:
        """The shard of each row."""
        return np.searchsorted(self._shard_ends, rows, side="right")

    def place_in_shard(self, rows: IntArray) -> IntArray:
        """The place of each row among the molecules of its shard."""
        return rows - self._shard_starts[self.shard_of(rows)]

    def draws_of_epoch(self, epoch: int) -> IntArray:
        """How often each row comes in an epoch; a scaffold's total is within 1 of its probability's."""
        draws = np.zeros(len(self._index), dtype=np.int64)
        if self._temperature is None:
            draws[self._rows] = 1
            return draws
        random = self._random(epoch, 0)
        # Scaffold after scaffold: equally spaced draws then meet each as often as its probability says. Its members
        # come in a new order every epoch: the draws go to others each time.
        order = np.lexsort((random.random(len(self)), self._members))
        shares = np.cumsum(self._row_probabilities[order])
        shares[-1] = 1.0  # whatever rounding made of it
        counts = np.diff(np.floor(shares * len(self) + random.random()), prepend=0.0)
        draws[self._rows[order]] = counts
        return draws

    def _order(self, epoch: int) -> IntArray:
        if epoch not in self._orders:
            # Steps may reach into the next epoch; no other is kept.
            self._orders = {known: order for known, order in self._orders.items() if abs(known - epoch) == 1}
            self._orders[epoch] = self._order_of_epoch(epoch)
        return self._orders[epoch]

    def _order_of_epoch(self, epoch: int) -> IntArray:
        random = self._random(epoch, 1)
        draws = self.draws_of_epoch(epoch)
        shards = random.permutation(len(self._index.shard_sizes))
        blocks = [shards[start : start + self._open_shards] for start in range(0, len(shards), self._open_shards)]
        order = [self._mixed(block, draws, random) for block in blocks]
        return np.concatenate(order)

    def _mixed(self, shards: IntArray, draws: IntArray, random: np.random.Generator) -> IntArray:
        rows = np.concatenate([np.arange(self._shard_starts[each], self._shard_ends[each]) for each in shards])
        return random.permutation(np.repeat(rows, draws[rows]))

    def _random(self, epoch: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, _PLAN_STREAM, epoch, purpose])
