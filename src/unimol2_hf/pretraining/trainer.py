"""The Hugging Face `Trainer` for pretraining: steps of micro-batches, losses apart, exact resume, averaged weights."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..configuration_unimol2 import UniMol2Config
from ..errors import ModelError
from ..training.checkpoints import checkpoint_of
from ..training.micro_batches import backward_in_parts
from .losses import (
    Batch,
    FloatArray,
    added_over_processes,
    loss_counts,
    loss_names,
    losses_of,
    validation_metrics,
    validation_sums,
)
from .stream import PretrainingStream

EMA_FILE = "ema.safetensors"


class UniMol2PretrainingTrainer(Trainer):
    """Optimiser updates over the steps of a `PretrainingStream`.

    A step's loss is that of its samples as one batch, however it is cut into micro-batches and shared among
    processes: the mean over masked atoms, the mean over molecules, and of each block of graph targets the mean over
    those that are present.

    Args:
        stream: training data; give it to `train_dataset` nowhere else.
        validation: this process's share of the padded batches with fixed noise.
        loss_weights: of every loss, by the name under which it is logged: the paper's three, then each block of graph
            targets'; by default 1. Losses are logged without their weight, their sum with it.
        (others): as `Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        stream: PretrainingStream,
        validation: list[Batch],
        loss_weights: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, train_dataset=stream, eval_dataset=validation, **kwargs)
        self.control: TrainerControl
        self._stream, self._validation = stream, validation
        self._config: UniMol2Config = self.model.config
        names = loss_names(self._config)
        self._weights = {name: (loss_weights or {}).get(name, 1.0) for name in names}
        # Kept where they are computed: a number read from a GPU waits for it.
        self._sums: dict[str, Tensor | float] = dict.fromkeys(names, 0.0)
        self._summed_steps = 0

    def get_train_dataloader(self) -> DataLoader[Any]:
        args = self.args
        return DataLoader(
            self._stream,
            batch_size=None,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            # Of its own: a number drawn from the global one would shift dropout after a restart.
            generator=torch.Generator(),
        )

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward over this process's micro-batches; gradients meet at the last one."""
        model.train()
        batches = self._prepare_inputs(inputs["micro_batches"])
        counts = [loss_counts(batch, self._config) for batch in inputs["micro_batches"]]
        totals = self._over_processes(np.sum(counts, axis=0)).clip(min=1.0)

        def loss_of(index: int, batch: Batch) -> Tensor:
            parts = self._parts(model, batch, counts[index] / totals)
            for name, part in parts.items():
                self._sums[name] = self._sums[name] + part.detach()
            loss = torch.stack([self._weights[name] * part for name, part in parts.items()]).sum()
            # The gradient is averaged over processes; each holds its share of a sum.
            return loss * self.args.world_size

        total = backward_in_parts(model, batches, loss_of, self.accelerator.backward)
        self._summed_steps += 1
        if not math.isfinite(float(total)):
            self._stop(inputs, batches)
        return total

    def _parts(self, model: nn.Module, batch: Batch, shares: FloatArray) -> dict[str, Tensor]:
        """The batch's part of each of the step's losses, unweighted."""
        with self.compute_loss_context_manager():
            losses = losses_of(model(**batch))
        return {name: float(share) * loss for name, share, loss in zip(self._weights, shares, losses, strict=True)}

    def _over_processes(self, values: FloatArray) -> FloatArray:
        """Each value's sum over all processes."""
        if self.args.world_size == 1:
            return values
        made = torch.tensor(values, device=self.args.device, dtype=torch.float64)
        torch.distributed.all_reduce(made)
        sums: FloatArray = made.cpu().numpy()
        return sums

    def _stop(self, inputs: Mapping[str, Any], batches: list[Batch]) -> None:
        """Save what led to a loss that is not finite, and end."""
        folder = Path(self.args.output_dir)
        name = f"not_finite_step_{inputs['step']}_rank_{self.args.process_index}"
        tensors = {
            f"{n}.{key}": value.contiguous().cpu() for n, batch in enumerate(batches) for key, value in batch.items()
        }
        save_file(tensors, folder / f"{name}.safetensors")
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters())
        what = "its weights are still finite" if finite else "its weights hold NaN or infinity already"
        raise ModelError(
            f"the loss of step {inputs['step']} is not finite; the batches are in {folder / name}.safetensors and "
            f"{what}. Go on from the last checkpoint with a lower learning rate"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each part to the logged mean loss, over the same steps."""
        if "loss" in logs and self._summed_steps:
            sums = self._over_processes(np.array([float(value) for value in self._sums.values()]))
            logs.update({name: float(value) / self._summed_steps for name, value in zip(self._sums, sums, strict=True)})
            self._sums, self._summed_steps = dict.fromkeys(self._sums, 0.0), 0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # Transformers' estimate knows no pair track

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Losses and errors on the validation batches, the same noise every time."""
        model: Any = self.accelerator.unwrap_model(self.model)
        batches = (self._prepare_inputs(batch) for batch in self._validation)
        # Graphs compiled for training are of no use here; new ones would cost more than they save.
        with torch.compiler.set_stance("force_eager"):
            sums = added_over_processes(validation_sums(model, batches), self._over_processes)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in validation_metrics(sums).items()}
        self.log(metrics)
        control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control = control
        return metrics


class WeightAverage(TrainerCallback):
    """An exponential moving average of the weights, kept in every checkpoint."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.average.update_parameters(kwargs["model"])  # type: ignore[operator]

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            tensors = {name: tensor.contiguous() for name, tensor in self.average.state_dict().items()}
            save_file(tensors, checkpoint_of(args, state) / EMA_FILE)

    def load(self, checkpoint: Path) -> None:
        self.average.load_state_dict(load_file(checkpoint / EMA_FILE))


def held_out_rows(count: int, wanted: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows for validation: the same for every run over the same library."""
    return np.sort(np.random.default_rng(0).permutation(count)[:wanted])
