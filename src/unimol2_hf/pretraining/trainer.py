"""The Hugging Face `Trainer` for pretraining: steps of micro-batches, three losses, exact resume, averaged weights."""

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import ModelError
from ..modeling_unimol2 import IGNORED_TOKEN, UniMol2ForPreTraining, UniMol2PreTrainingOutput
from ..trainer import without_sync
from .stream import PretrainingStream

EMA_FILE = "ema.safetensors"
COMPLETE_FILE = "complete.json"
LOSSES = ("token_loss", "coordinate_loss", "distance_loss")
Batch = Mapping[str, Tensor]


class UniMol2PretrainingTrainer(Trainer):
    """Optimiser updates over the steps of a `PretrainingStream`.

    A step's loss is that of its samples as one batch, however it is cut into micro-batches and shared among
    processes: the mean over masked atoms, and the mean over molecules.

    Args:
        stream: training data; give it to `train_dataset` nowhere else.
        validation: this process's share of the padded batches with fixed noise.
        (others): as `Trainer`.
    """

    def __init__(self, *args: Any, stream: PretrainingStream, validation: list[Batch], **kwargs: Any) -> None:
        super().__init__(*args, train_dataset=stream, eval_dataset=validation, **kwargs)
        self.control: TrainerControl
        self._stream, self._validation = stream, validation
        # Kept where they are computed: a number read from a GPU waits for it.
        self._sums: dict[str, Tensor | float] = dict.fromkeys(LOSSES, 0.0)
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
        counts = [_masked(batch) for batch in inputs["micro_batches"]]
        batches = self._prepare_inputs(inputs["micro_batches"])
        masked = max(1.0, self._over_processes([sum(counts)])[0])
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(batches):
            with without_sync(model, number < len(batches) - 1):
                molecules = len(batch["input_ids"])
                parts = self._weighted_losses(model, batch, counts[number] / masked, molecules / inputs["samples"])
                loss = torch.stack(parts).sum()
                # The gradient is averaged over processes; each holds its share of a sum.
                self.accelerator.backward(loss * self.args.world_size)
            total += loss.detach()
            for name, part in zip(LOSSES, parts, strict=True):
                self._sums[name] = self._sums[name] + part.detach()
        self._summed_steps += 1
        if not math.isfinite(float(total)):
            self._stop(inputs, batches)
        return total * self.args.world_size

    def _weighted_losses(
        self, model: nn.Module, batch: Batch, share_of_masked: float, share_of_molecules: float
    ) -> list[Tensor]:
        """The batch's part of the step's token, coordinate and distance loss."""
        with self.compute_loss_context_manager():
            output: UniMol2PreTrainingOutput = model(**batch)
        weights = (share_of_masked, share_of_molecules, share_of_molecules)
        losses = (output.token_loss, output.coordinate_loss, output.distance_loss)
        return [weight * loss for weight, loss in zip(weights, losses, strict=True) if loss is not None]

    def _over_processes(self, values: list[float]) -> list[float]:
        """Each value's sum over all processes."""
        if self.args.world_size == 1:
            return values
        made = torch.tensor(values, device=self.args.device, dtype=torch.float64)
        torch.distributed.all_reduce(made)
        sums: list[float] = made.tolist()
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
        """Adds the three losses to the logged mean loss, over the same steps."""
        if "loss" in logs and self._summed_steps:
            sums = self._over_processes([float(self._sums[name]) for name in LOSSES])
            logs.update({name: value / self._summed_steps for name, value in zip(LOSSES, sums, strict=True)})
            self._sums, self._summed_steps = dict.fromkeys(LOSSES, 0.0), 0
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
            sums = self._over_processes(validation_sums(model, batches))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in validation_metrics(sums).items()}
        self.log(metrics)
        control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control = control
        return metrics


def _masked(batch: Batch) -> float:
    return float((batch["labels"] != IGNORED_TOKEN).sum())


_SUMS = ("masked", "molecules", "coordinates", "token", "right", "coordinate", "distance", "squared", "noise_squared")


@torch.no_grad()
def validation_sums(model: UniMol2ForPreTraining, batches: Iterable[Batch]) -> list[float]:
    """Sums over batches, in the order of `validation_metrics`."""
    training = model.training
    model.eval()
    sums = dict.fromkeys(_SUMS, 0.0)
    for batch in batches:
        output = model(**batch)
        labels, atoms = batch["labels"], batch["attention_mask"].bool()
        hidden = labels != IGNORED_TOKEN
        target = batch["target_coordinates"].float()
        molecules, masked = len(labels), float(hidden.sum())
        values = {
            "masked": masked,
            "molecules": molecules,
            "coordinates": 3 * float(atoms.sum()),
            "token": float(output.token_loss) * masked,
            "right": float((output.token_logits.argmax(-1) == labels)[hidden].sum()),
            "coordinate": float(output.coordinate_loss) * molecules,
            "distance": float(output.distance_loss) * molecules,
            "squared": float((output.predicted_coordinates - target)[atoms].square().sum()),
            "noise_squared": float((batch["coordinates"].float() - target)[atoms].square().sum()),
        }
        sums = {name: sums[name] + values[name] for name in _SUMS}
    model.train(training)
    return [sums[name] for name in _SUMS]


def validation_metrics(values: list[float]) -> dict[str, float]:
    """`loss` and its three parts, `token_accuracy`, and root mean square errors of a coordinate, angstrom.

    `coordinate_rmse` is the model's; `noise_rmse` that of leaving the noised coordinates as they are.
    """
    sums = dict(zip(_SUMS, values, strict=True))
    masked, molecules = max(1.0, sums["masked"]), sums["molecules"]
    parts = {
        "token_loss": sums["token"] / masked,
        "coordinate_loss": sums["coordinate"] / molecules,
        "distance_loss": sums["distance"] / molecules,
    }
    return {
        "loss": sum(parts.values()),
        **parts,
        "token_accuracy": sums["right"] / masked,
        "coordinate_rmse": math.sqrt(sums["squared"] / sums["coordinates"]),
        "noise_rmse": math.sqrt(sums["noise_squared"] / sums["coordinates"]),
    }


class WeightAverage(TrainerCallback):
    """An exponential moving average of the weights, kept in every checkpoint."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.average.update_parameters(kwargs["model"])  # type: ignore[operator]

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            tensors = {name: tensor.contiguous() for name, tensor in self.average.state_dict().items()}
            save_file(tensors, _checkpoint(args, state) / EMA_FILE)

    def load(self, checkpoint: Path) -> None:
        self.average.load_state_dict(load_file(checkpoint / EMA_FILE))


class MarkComplete(TrainerCallback):
    """Marks a checkpoint once everything of it is written; one that a kill cut short is not gone on from."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            (_checkpoint(args, state) / COMPLETE_FILE).write_text(json.dumps({"step": state.global_step}) + "\n")


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; None if there is none."""
    found = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE_FILE}")]
    return max(found, key=step_of, default=None)


def remove_incomplete_checkpoints(folder: Path) -> None:
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not (path / COMPLETE_FILE).exists():
            shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    """The optimiser update after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def held_out_rows(count: int, wanted: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows for validation: the same for every run over the same library."""
    return np.sort(np.random.default_rng(0).permutation(count)[:wanted])
