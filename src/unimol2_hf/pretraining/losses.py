"""The losses of pretraining, each by its name and with what it is the mean of; errors on held-out molecules."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..configuration_unimol2 import UniMol2Config
from ..data.conformer_library import GRAPH_TARGETS
from ..modeling_unimol2 import UniMol2ForPreTraining, UniMol2PreTrainingOutput
from ..settings_unimol2 import IGNORE_INDEX
from .settings import PAPER_LOSSES, loss_name

Batch = Mapping[str, Tensor]
FloatArray = NDArray[np.float64]
Sums = dict[str, FloatArray]


def loss_names(config: UniMol2Config) -> list[str]:
    """Under which the losses are logged: the paper's three, then each block of graph targets'."""
    return [loss_name(each) for each in (*PAPER_LOSSES, *_blocks(config))]


def losses_of(output: UniMol2PreTrainingOutput) -> list[Tensor]:
    """The losses in the order of `loss_names`."""
    graph = () if output.graph_losses is None else output.graph_losses.unbind()
    return [output[loss_name(each)] for each in PAPER_LOSSES] + list(graph)


def loss_counts(batch: Batch, config: UniMol2Config) -> FloatArray:
    """Of how many masked atoms, molecules or targets each of a batch's losses is the mean."""
    masked, molecules = int((batch["labels"] != IGNORE_INDEX).sum()), len(batch["labels"])
    present = [int((~block.isnan()).sum()) for block in _cut(batch, config)]
    return np.array([masked, molecules, molecules, *present], dtype=np.float64)


def _blocks(config: UniMol2Config) -> list[str]:
    return [block["name"] for block in config.graph_targets or ()]


def _cut(batch: Batch, config: UniMol2Config) -> Sequence[Tensor]:
    """The graph targets of a batch, block by block."""
    sizes = config.graph_target_sizes
    return batch[GRAPH_TARGETS].split(sizes, dim=-1) if sizes else ()


@torch.no_grad()
def validation_sums(model: UniMol2ForPreTraining, batches: Iterable[Batch]) -> Sums:
    """Sums over batches, which may be added up over processes; `validation_metrics` makes sense of them."""
    training = model.training
    model.eval()
    sums = _no_sums(model.config)
    for batch in batches:
        output = model(**batch)
        counts = loss_counts(batch, model.config)
        for name, loss, count in zip(loss_names(model.config), losses_of(output), counts, strict=True):
            sums[name] += float(loss) * count, count
        sums["errors"] += _errors(output, batch)
        for name, values in _target_moments(output, batch, model.config).items():
            sums[name] += values
    model.train(training)
    return sums


def _no_sums(config: UniMol2Config) -> Sums:
    losses = {name: np.zeros(2) for name in loss_names(config)}
    blocks = zip(_blocks(config), config.graph_target_sizes, strict=True)
    return {**losses, "errors": np.zeros(4), **{name: np.zeros((4, size)) for name, size in blocks}}


def _errors(output: UniMol2PreTrainingOutput, batch: Batch) -> FloatArray:
    """Right elements, squared errors of the model's and of the noised coordinates, number of coordinates."""
    labels, atoms = batch["labels"], batch["attention_mask"].bool()
    assert output.token_logits is not None
    assert output.predicted_coordinates is not None
    hidden, target = labels != IGNORE_INDEX, batch["target_coordinates"].float()
    right = (output.token_logits.argmax(-1) == labels)[hidden].sum()
    squared = [
        float((each.float() - target)[atoms].square().sum())
        for each in (output.predicted_coordinates, batch["coordinates"])
    ]
    return np.array([float(right), *squared, 3 * float(atoms.sum())])


def _target_moments(output: UniMol2PreTrainingOutput, batch: Batch, config: UniMol2Config) -> Sums:
    """Of each block (4, targets): number, sum, sum of squares, and squared errors of what the CLS says."""
    if output.predicted_graph_targets is None:
        return {}
    predicted = output.predicted_graph_targets[0].split(config.graph_target_sizes, dim=-1)
    moments: Sums = {}
    for name, said, wanted in zip(_blocks(config), predicted, _cut(batch, config), strict=True):
        present, values = ~wanted.isnan(), wanted.nan_to_num().double()
        squared = (said.double() - values).square() * present
        moments[name] = torch.stack([each.sum(0) for each in (present, values, values.square(), squared)]).cpu().numpy()
    return moments


def validation_metrics(sums: Mapping[str, FloatArray]) -> dict[str, float]:
    """`loss` (unweighted) and its parts, `token_accuracy`, root mean square errors of a coordinate, angstrom; R2.

    `coordinate_rmse` is the model's; `noise_rmse` that of leaving the noised coordinates as they are; `<targets>_r2`
    the median over a block's targets of R2, as the CLS gives them.
    """
    parts = {name: values[0] / max(1.0, values[1]) for name, values in sums.items() if values.shape == (2,)}
    right, squared, noise_squared, coordinates = sums["errors"]
    return {
        "loss": float(sum(parts.values())),
        **{name: float(value) for name, value in parts.items()},
        "token_accuracy": float(right / max(1.0, sums[loss_name("token")][1])),
        "coordinate_rmse": math.sqrt(squared / coordinates),
        "noise_rmse": math.sqrt(noise_squared / coordinates),
        **{f"{name}_r2": _median_r2(values) for name, values in sums.items() if values.ndim == 2},
    }


def _median_r2(moments: FloatArray) -> float:
    """Of the targets that vary; NaN if none does."""
    number, total, squares, errors = moments
    spread = squares - total**2 / np.maximum(1.0, number)
    varies = spread > 1e-9
    return float(np.median(1 - errors[varies] / spread[varies])) if varies.any() else math.nan


def added_over_processes(sums: Sums, add: Any) -> Sums:
    """Sums of this process added to those of all others by `add`, which adds up one flat array."""
    ends = np.cumsum([values.size for values in sums.values()])[:-1]
    parts = np.split(add(np.concatenate([values.ravel() for values in sums.values()])), ends)
    return {name: part.reshape(values.shape) for (name, values), part in zip(sums.items(), parts, strict=True)}
