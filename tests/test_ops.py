"""Tuned operations against their naive forms, in value and gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unimol2_hf.ops_unimol2 import (
    dropout_add,
    naive_outer_product,
    naive_triangle_sums,
    outer_product,
    rational_normal_quantile,
    triangle_sums,
)

pytestmark = pytest.mark.numerical

BATCH, LENGTH, INNER, WIDTH = 3, 7, 4, 5


def value_and_gradients(operation: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [each.clone().requires_grad_() for each in inputs]
    value = operation(*leaves)
    weights = torch.linspace(-1.0, 1.0, value.numel()).view_as(value)
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), leaves)]


@pytest.mark.parametrize("with_residual", [False, True])
def test_outer_product(with_residual: bool) -> None:
    inputs = [
        torch.randn(BATCH, LENGTH, INNER),
        torch.randn(BATCH, LENGTH, INNER),
        torch.randn(WIDTH, INNER * INNER),
        torch.randn(BATCH, 1, 1, WIDTH),
    ]
    if with_residual:
        inputs.append(torch.randn(BATCH, LENGTH, LENGTH, WIDTH))
    tuned, naive = (value_and_gradients(each, *inputs) for each in (outer_product, naive_outer_product))
    for ours, plain in zip(tuned, naive, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_triangle_sums() -> None:
    inputs = [torch.randn(INNER, LENGTH, LENGTH), torch.randn(INNER, LENGTH, LENGTH)]
    tuned, naive = (value_and_gradients(each, *inputs) for each in (triangle_sums, naive_triangle_sums))
    for ours, plain in zip(tuned, naive, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_rational_normal_quantile() -> None:
    probabilities = torch.linspace(1e-6, 1 - 1e-6, 10_001)
    ours, plain = (value_and_gradients(each, probabilities) for each in (rational_normal_quantile, torch.special.ndtri))
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[1], plain[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5])
def test_dropout_add(probability: float) -> None:
    """Kept elements are scaled, the others are the residual; as many are kept as should be, by value and gradient."""
    residual, update = torch.randn(200, 501), torch.randn(200, 501) + 10.0
    value, of_residual, of_update = value_and_gradients(lambda r, u: dropout_add(r, u, probability), residual, update)
    kept = (value - residual).abs() > 1e-3
    assert kept.float().mean() == pytest.approx(1 - probability, abs=0.01)
    scaled = torch.where(kept, update / (1 - probability), 0.0)
    torch.testing.assert_close(value, residual + scaled, rtol=1e-3, atol=1e-3)
    scale = torch.where(kept, 1 / (1 - probability), 0.0)
    torch.testing.assert_close(of_update, of_residual * scale, rtol=1e-3, atol=1e-3)
