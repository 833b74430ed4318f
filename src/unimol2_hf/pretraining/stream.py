"""Steps of pretraining as micro-batches, planned so that any process can find any step again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from ..batching import DEFAULT_MAX_PAIRS, plan_batches
from ..data.conformer_library import ConformerLibrary
from ..errors import SettingsError
from .collator import DRAW, DataCollatorForUniMol2Pretraining
from .plan import SamplingPlan


@dataclass(frozen=True)
class Share:
    """This process among all that train together."""

    rank: int = 0
    world_size: int = 1


class PretrainingStream(IterableDataset[dict[str, Any]]):
    """Steps of pretraining, each the samples of one optimiser update, as micro-batches of like length.

    Yields {"step", "samples", "micro_batches"}: the step's number, its number of samples over all processes, and this
    process's padded batches. All processes plan the same step and each takes its share of the samples; a step's
    samples do not depend on how many processes or workers there are.

    Args:
        library, plan: what to draw from.
        collator: makes batches.
        samples_per_step: over all processes.
        max_rows, max_pairs: of a micro-batch (see `plan_batches`).
        share: this process among all.
        first_step: where to go on; set it before iterating.
        end_step: the step after the last; `None`: it never ends.
    """

    def __init__(
        self,
        library: ConformerLibrary,
        plan: SamplingPlan,
        num_heavy_atoms: NDArray[np.integer],
        collator: DataCollatorForUniMol2Pretraining,
        samples_per_step: int,
        max_rows: int,
        max_pairs: int = DEFAULT_MAX_PAIRS,
        share: Share | None = None,
        first_step: int = 0,
        end_step: int | None = None,
    ) -> None:
        self._library, self._plan, self._sizes = library, plan, num_heavy_atoms
        self._collator = collator
        self._samples_per_step, self._max_rows, self._max_pairs = samples_per_step, max_rows, max_pairs
        self._share = share or Share()
        self.first_step, self.end_step = first_step, end_step
        if samples_per_step < self._share.world_size:
            raise SettingsError(f"{samples_per_step} samples a step are fewer than {self._share.world_size} processes")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.first_step + number
        while self.end_step is None or step < self.end_step:
            yield self.step(step)
            step += workers

    def step(self, step: int) -> dict[str, Any]:
        """This process's part of a step."""
        first = step * self._samples_per_step
        rows = self._plan.samples(first, self._samples_per_step)
        shards, places = self._plan.shard_of(rows), self._plan.place_in_shard(rows)
        batches = [
            self._collator([self._row(first, place, shards, places) for place in batch])
            for batch in self._own_batches(rows)
        ]
        return {"step": step, "samples": self._samples_per_step, "micro_batches": batches}

    def _row(self, first: int, place: int, shards: NDArray[np.int64], places: NDArray[np.int64]) -> Mapping[str, Any]:
        return {**self._library.row(int(shards[place]), int(places[place])), DRAW: first + place}

    def _own_batches(self, rows: NDArray[np.int64]) -> list[list[int]]:
        lengths = self._sizes[rows]
        # Dealt out in order of length: every process gets as many samples, and of like lengths.
        own = np.argsort(lengths, kind="stable")[self._share.rank :: self._share.world_size]
        batches = plan_batches(lengths[own].tolist(), self._max_rows, self._max_pairs)
        return [own[batch].tolist() for batch in batches]
