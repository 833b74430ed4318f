"""Which molecules share a batch: of like length, at most so many pairs of atoms, for tables and streams."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, Sampler

from ..batching import DEFAULT_MAX_PAIRS, plan_batches
from ..errors import SettingsError

_EPOCH_SEED_STEP = 1_000_003  # a prime: seeds of different runs and epochs do not meet

_STREAM_WINDOW = 1024


class PairBudgetBatchSampler(Sampler[list[int]]):
    """Batches of like length for a map-style dataset, in a new random order every epoch.

    Molecules are sorted by length, equal lengths in random order, so an epoch's number of batches never changes.
    Every molecule comes once an epoch; over several processes each gets the same number of batches.

    Args:
        lengths: heavy atoms of each molecule.
        max_rows: most molecules of a batch.
        max_pairs: most entries of a batch's padded pair track (see `plan_batches`).
        seed: of the order; the epoch is added.
        shuffle: off for evaluation: shortest first.
        rank, world_size: this process among all.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        max_rows: int,
        max_pairs: int = DEFAULT_MAX_PAIRS,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._lengths = list(lengths)
        self._max_rows, self._max_pairs = max_rows, max_pairs
        self._seed, self._shuffle = seed, shuffle
        self._rank, self._world_size = rank, world_size
        self._epoch = 0
        self._count = len(self._batches_of_epoch()) // world_size

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._batches_of_epoch(), self._rank, None, self._world_size)

    def _batches_of_epoch(self) -> list[list[int]]:
        random = np.random.default_rng(self._seed + _EPOCH_SEED_STEP * self._epoch)
        order = random.permutation(len(self._lengths)) if self._shuffle else np.arange(len(self._lengths))
        planned = plan_batches([self._lengths[row] for row in order], self._max_rows, self._max_pairs)
        batches = _in_multiples([[int(order[place]) for place in batch] for batch in planned], self._world_size)
        return [batches[place] for place in random.permutation(len(batches))] if self._shuffle else batches


def _in_multiples(batches: list[list[int]], number: int) -> list[list[int]]:
    """As many batches as every process gets the same of: the largest are halved, single rows repeated."""
    while len(batches) % number:
        largest = max(range(len(batches)), key=lambda place: len(batches[place]))
        batch = batches[largest]
        half = len(batch) // 2
        batches[largest : largest + 1] = [batch[:half], batch[half:]] if half else [batch, batch]
    return batches


class PlannedStream(IterableDataset[list[Any]]):
    """Planned batches of a stream of rows: `window` rows are read, sorted by length and cut into batches.

    Every row comes once. Over several processes each takes its share of the rows, unless the stream is split
    already; `datasets` streams are split there (`split_dataset_by_node`).

    Args:
        rows: model inputs (see `UniMol2FeatureExtractor.featurize`); iterated once an epoch.
        max_rows, max_pairs: see `plan_batches`.
        window: rows read at a time; more means less padding and less random batches.
        seed: of the order of batches in a window.
        rank, world_size: this process among all; leave as they are if the stream is split.
    """

    def __init__(
        self,
        rows: Iterable[Any],
        max_rows: int,
        max_pairs: int = DEFAULT_MAX_PAIRS,
        window: int = _STREAM_WINDOW,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._rows = rows
        self._max_rows, self._max_pairs, self._window = max_rows, max_pairs, window
        self._seed, self._epoch = seed, 0
        self._rank, self._world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        if hasattr(self._rows, "set_epoch"):
            self._rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[Any]]:
        random = np.random.default_rng(self._seed + _EPOCH_SEED_STEP * self._epoch)
        rows = islice(self._rows, self._rank, None, self._world_size)
        while chunk := list(islice(rows, self._window)):
            batches = plan_batches([heavy_atoms(row) for row in chunk], self._max_rows, self._max_pairs)
            for place in random.permutation(len(batches)):
                yield [chunk[row] for row in batches[place]]


def heavy_atoms(row: Any) -> int:
    """Heavy atoms of a model input."""
    try:
        return len(row["input_ids"])
    except (KeyError, TypeError) as error:
        raise SettingsError("a row without input_ids cannot be planned; give rows of the feature extractor") from error


def lengths_of(dataset: Any) -> list[int]:
    """Heavy atoms of each row: the dataset's `lengths`, a `datasets` column `length`, or what its rows hold."""
    if hasattr(dataset, "lengths"):
        return list(dataset.lengths)
    if "length" in (getattr(dataset, "column_names", None) or ()):
        return list(dataset["length"])
    return [heavy_atoms(dataset[row]) for row in range(len(dataset))]


class PlannedDataLoader(DataLoader[Any]):
    """A `DataLoader` over planned batches that tells them the epoch, as `Trainer` expects."""

    def set_epoch(self, epoch: int) -> None:
        planner = self.dataset if isinstance(self.dataset, PlannedStream) else self.batch_sampler
        cast("PlannedStream | PairBudgetBatchSampler", planner).set_epoch(epoch)
