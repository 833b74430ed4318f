"""The Hugging Face `Trainer` with batches sized by pairs of atoms: flat memory, little padding."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Trainer
from transformers.trainer_utils import seed_worker

from ..batching import DEFAULT_MAX_PAIRS
from ..errors import SettingsError
from .micro_batches import backward_in_parts, label_shares, parts_of
from .samplers import PairBudgetBatchSampler, PlannedDataLoader, PlannedStream, lengths_of


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
            raise SettingsError("molecules have columns that Trainer would drop; set remove_unused_columns=False")

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As `Trainer`'s, in parts where the batch exceeds `max_pairs_at_once`."""
        parts = [inputs] if self._max_pairs_at_once is None else parts_of(inputs, self._max_pairs_at_once)
        if len(parts) == 1:
            step: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return step
        model.train()
        shares = label_shares(parts)

        def loss_of(index: int, part: dict[str, Any]) -> Tensor:
            with self.compute_loss_context_manager():
                loss: Tensor = self.compute_loss(model, self._prepare_inputs(part))
            return loss * shares[index] / self.current_gradient_accumulation_steps

        return backward_in_parts(model, parts, loss_of, self.accelerator.backward)

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.train_dataset is None:
            raise SettingsError("training needs a train_dataset")
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
                raise SettingsError("a stream is planned in one process; set dataloader_num_workers=0")
            stream = PlannedStream(dataset, max_rows, self._max_pairs, seed=seed, **share)
            return PlannedDataLoader(stream, batch_size=None, **options)
        sampler = PairBudgetBatchSampler(
            lengths_of(dataset), max_rows, self._max_pairs, seed=seed, shuffle=training, **share
        )
        return PlannedDataLoader(dataset, batch_sampler=sampler, **options)
