"""A batch in parts whose gradients add up to the batch's."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..batching import most_rows


def without_sync(model: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """Within it a distributed model keeps its gradients to itself, if wanted."""
    distributed: Any = model
    context: AbstractContextManager[Any] = (
        distributed.no_sync() if wanted and hasattr(model, "no_sync") else nullcontext()
    )
    return context


def backward_in_parts(
    model: nn.Module,
    parts: Sequence[Any],
    loss_of: Callable[[int, Any], Tensor],
    backward: Callable[[Tensor], object],
) -> Tensor:
    """Forward and backward of one part after another, whose gradients add up; returns the sum of their losses.

    Args:
        model: a distributed one shares its gradients at the last part only.
        parts: micro-batches of a step.
        loss_of: a part's share of the step's loss, from its index and the part.
        backward: as `Accelerator.backward`.
    """
    losses: list[Tensor] = []
    for index, part in enumerate(parts):
        with without_sync(model, index < len(parts) - 1):
            loss = loss_of(index, part)
            backward(loss)
        losses.append(loss.detach())
    return torch.stack(losses).sum()


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
