"""Tuned operations of the model, each beside its naive form, which the tests hold it to in value and gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def is_float32_inference_on_cpu(*tensors: Tensor) -> bool:
    """Whether tensors may take a path of plain eager operations that keeps nothing for gradients."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


def pairwise_distances(coordinates: Tensor) -> Tensor:
    """Euclidean distances (B, N, N) of coordinates (B, N, 3)."""
    return torch.linalg.vector_norm(coordinates.unsqueeze(-2) - coordinates.unsqueeze(-3), dim=-1)


def mean_of_atoms(states: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, D) from states (B, S, D), the CLS first, over the atoms of a mask (B, N)."""
    mask = attention_mask.bool().unsqueeze(-1)
    return states[:, 1:].masked_fill(~mask, 0.0).sum(1) / mask.sum(1)


def naive_outer_product(
    left: Tensor, right: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None
) -> Tensor:
    """W vec(a_i (x) b_j) + bias (+ residual) for all pairs (B, S, S, P), from a, b (B, S, d) and W (P, d * d)."""
    outer = left[:, :, None, :, None] * right[:, None, :, None, :]
    product = F.linear(outer.flatten(-2), weight) + bias
    return product if residual is None else residual + product


def outer_product(left: Tensor, right: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
    """The same without the (S, S, d * d) outer product: W is applied to b first.

    S P d^2 + S^2 P d multiply-adds instead of S^2 P d^2.
    """
    batch, length, inner = left.shape
    weight = weight.view(-1, inner)
    # Under autocast the product is narrower than the residual.
    if residual is not None and residual.dtype == left.dtype and not torch.is_autocast_enabled(left.device.type):
        # The product adds onto the sum in place: one pass over the pairs instead of three.
        mapped = _mapped(weight, right).transpose(1, 2)
        return (residual + bias).view(batch, length, -1).baddbmm_(left, mapped).view_as(residual)
    product = _pair_product(left, right, weight).view(batch, length, length, -1) + bias
    return product if residual is None else residual + product.to(residual.dtype)


def _mapped(weight: Tensor, right: Tensor) -> Tensor:
    """W b_j for all atoms, (B, S * P, d); row p * d + c of the weight holds W[p, c, :]."""
    return F.linear(right, weight).view(right.shape[0], -1, right.shape[-1])


class _PairProduct(torch.autograd.Function):
    """a_i W b_j of a, b (B, S, d) and W (P * d, d) as (B, S, S * P), at a smaller price than autograd's.

    W b (B, S, P, d) is made again in the backward pass: at 84M it is 2.4 times the pair track's size. And its gradient
    comes in its own layout; autograd's comes transposed and is copied, for 5 % of a training step on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(left, right, weight)
        return torch.bmm(left, _mapped(weight, right).transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, right, weight = ctx.saved_tensors
        grad_left = torch.bmm(grads[0], _mapped(weight, right))
        grad_mapped = torch.bmm(grads[0].transpose(1, 2), left).view(-1, weight.shape[0])
        grad_right = (grad_mapped @ weight).view_as(right)
        return grad_left, grad_right, grad_mapped.T @ right.reshape(-1, right.shape[-1])


def _pair_product(left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(left.device.type):
        return torch.matmul(left, _mapped(weight, right).transpose(1, 2))
    product: Tensor = _PairProduct.apply(left, right, weight)
    return product


def naive_triangle_sums(left: Tensor, right: Tensor) -> Tensor:
    """sum_k a_ik b_jk + sum_k a_ki b_kj for stacks (C, S, S) of a and b."""
    return torch.einsum("cik,cjk->cij", left, right) + torch.einsum("cki,ckj->cij", left, right)


def triangle_sums(left: Tensor, right: Tensor) -> Tensor:
    """The same as two matrix products, the second added onto the first: a b^T + a^T b."""
    return torch.baddbmm(torch.bmm(left, right.transpose(1, 2)), left.transpose(1, 2), right)


# Wichura's PPND7 (Applied Statistics 37 (1988) 477) for probabilities above exp(-25); highest power first.
_CENTRE_ABOVE = (59.109374720, 159.29113202, 50.434271938, 3.3871327179)
_CENTRE_BELOW = (67.187563600, 78.757757664, 17.895169469, 1.0)
_TAIL_ABOVE = (0.17023821103, 1.3067284816, 2.7568153900, 1.4234372777)
_TAIL_BELOW = (0.12021132975, 0.73700164250, 1.0)


def rational_normal_quantile(probabilities: Tensor) -> Tensor:
    """`torch.special.ndtri` to 1e-6, of operations that every exported graph has."""
    centred = probabilities - 0.5
    inner = 0.180625 - centred.square()
    centre = centred * _polynomial(inner, _CENTRE_ABOVE) / _polynomial(inner, _CENTRE_BELOW)
    outer = torch.minimum(probabilities, 1 - probabilities).log().neg().sqrt() - 1.6
    tail = centred.sign() * _polynomial(outer, _TAIL_ABOVE) / _polynomial(outer, _TAIL_BELOW)
    return torch.where(centred.abs() <= 0.425, centre, tail)


def _polynomial(values: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    result = torch.full_like(values, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * values + coefficient
    return result


def normal_quantile(probabilities: Tensor) -> Tensor:
    """Quantiles of the standard normal distribution."""
    if torch.compiler.is_compiling():
        return rational_normal_quantile(probabilities)
    return torch.special.ndtri(probabilities)


def naive_dropout_add(residual: Tensor, update: Tensor, probability: float) -> Tensor:
    """residual + dropout(update), in training."""
    return residual + F.dropout(update, probability)


def dropout_add(residual: Tensor, update: Tensor, probability: float) -> Tensor:
    """The same; on a CPU four elements of the mask from each random number, kept as a byte each.

    PyTorch draws a random number for each element and keeps a float: 14 % of a training step's time at 84M.
    """
    # Cast first: on a CPU a sum of two types is not vectorised (a tenth of a training step under autocast).
    update = update.to(residual.dtype)
    if not 0 < probability < 1 or residual.device.type != "cpu" or torch.compiler.is_compiling():
        return naive_dropout_add(residual, update, probability)
    added: Tensor = _DropoutAdd.apply(residual, update, probability)
    return added


class _DropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, update: Tensor, probability: float) -> Tensor:
        kept = round((1 - probability) * 2**16)  # of 65,536
        numbers = torch.empty((update.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), 2**63 - 1)
        mask = (numbers.view(torch.int16)[: update.numel()] < kept - 2**15).view_as(update)
        ctx.save_for_backward(mask)
        ctx.scale = 2**16 / kept
        return torch.addcmul(residual, update, mask.to(update.dtype), value=ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grads[0], (grads[0] * ctx.scale).mul_(mask), None
