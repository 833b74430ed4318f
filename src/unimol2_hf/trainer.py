"""The Hugging Face `Trainer` with batches sized by pairs of atoms: flat memory, little padding."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import Trainer
from transformers.trainer_utils import seed_worker

from .batching import DEFAULT_MAX_PAIRS, most_rows, plan_batches
from .errors import UniMol2Error

_EPOCH_SEED_STEP = 1_000_003  # a prime: seeds of different runs and epochs do not meet
_STREAM_WINDOW = 1024
PRECISIONS = ("float32", "bfloat16")  # of training; bfloat16 is autocast


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
        raise UniMol2Error("a row without input_ids cannot be planned; give rows of the feature extractor") from error


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


def without_sync(model: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """Within it a distributed model keeps its gradients to itself, if wanted."""
    distributed: Any = model
    context: AbstractContextManager[Any] = (
        distributed.no_sync() if wanted and hasattr(model, "no_sync") else nullcontext()
    )
    return context


def parts_of(batch: Mapping[str, Any], max_pairs: int) -> list[dict[str, Any]]:
    """A padded batch cut into batches of as many rows each, as nearly as possible, and at most `max_pairs` pairs.

    Every tensor's first dimension is the batch's. A molecule that alone has more pairs is a part of its own.
    """
    rows, atoms = batch["input_ids"].shape
    parts = -(-rows // most_rows(atoms, rows, max_pairs))
    cut = {name: tensor.tensor_split(parts) for name, tensor in batch.items()}
    return [{name: tensors[part] for name, tensors in cut.items()} for part in range(parts)]


def label_shares(parts: Sequence[Mapping[str, Any]]) -> list[float]:
    """What each part's mean over its labels counts in the mean over all labels; missing ones (NaN) are left out."""
    counts = [float((~part["labels"].isnan()).sum()) for part in parts]
    return [count / max(1.0, sum(counts)) for count in counts]


class UniMol2Trainer(Trainer):
    """`Trainer` whose batches hold molecules of like length and at most `max_pairs` pairs of atoms.

    `per_device_train_batch_size` is the most molecules of a batch; batches of large molecules hold fewer. Works with
    map-style datasets and with streams (`IterableDataset`, also of `datasets`), on one process or several.

    Args:
        max_pairs: budget of a batch (see `plan_batches`); lower it where memory runs out.
        max_pairs_at_once: a training batch with more pairs is run in parts, one after another, whose gradients add up
            to the batch's: less memory, and on a CPU faster. For losses that are means over the labels that are not
            NaN, as the models' own. None runs every batch whole.
        (others): as `Trainer`; `remove_unused_columns=False` is needed.
    """

    def __init__(
        self, *args: Any, max_pairs: int = DEFAULT_MAX_PAIRS, max_pairs_at_once: int | None = None, **kwargs: Any
    ) -> None:
        self._max_pairs, self._max_pairs_at_once = max_pairs, max_pairs_at_once
        super().__init__(*args, **kwargs)
        if self.args.remove_unused_columns:
            raise UniMol2Error("molecules have columns that Trainer would drop; set remove_unused_columns=False")

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As `Trainer`'s, in parts where the batch exceeds `max_pairs_at_once`."""
        parts = [inputs] if self._max_pairs_at_once is None else parts_of(inputs, self._max_pairs_at_once)
        if len(parts) == 1:
            step: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return step
        model.train()
        total = torch.zeros((), device=self.args.device)
        for number, (part, share) in enumerate(zip(parts, label_shares(parts), strict=True)):
            with without_sync(model, number < len(parts) - 1):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, self._prepare_inputs(part)) * share
                loss = loss / self.current_gradient_accumulation_steps
                self.accelerator.backward(loss)
                total += loss.detach()
        return total

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.train_dataset is None:
            raise UniMol2Error("training needs a train_dataset")
        return self._planned(self.train_dataset, self._train_batch_size, training=True)

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[Any]:
        """Planned as well, in one process: evaluation does not depend on the order, `predict` (not planned) does."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        chosen = self.eval_dataset[chosen] if isinstance(chosen, str) else chosen
        if chosen is None or not hasattr(chosen, "__len__") or self.args.world_size > 1:
            return super().get_eval_dataloader(eval_dataset)
        return self._planned(chosen, self.args.eval_batch_size, training=False)

    def _planned(self, dataset: Any, max_rows: int, training: bool) -> DataLoader[Any]:
        args = self.args
        share = {"rank": args.process_index, "world_size": args.world_size}
        seed = args.seed if args.data_seed is None else args.data_seed
        options: dict[str, Any] = {
            "collate_fn": self.data_collator,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "worker_init_fn": partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        }
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            if args.dataloader_num_workers:
                raise UniMol2Error("a stream is planned in one process; set dataloader_num_workers=0")
            stream = PlannedStream(dataset, max_rows, self._max_pairs, seed=seed, **share)
            return PlannedDataLoader(stream, batch_size=None, **options)
        sampler = PairBudgetBatchSampler(
            lengths_of(dataset), max_rows, self._max_pairs, seed=seed, shuffle=training, **share
        )
        return PlannedDataLoader(dataset, batch_sampler=sampler, **options)
