"""The model as the paper writes it, in full: slow, and the judge of what the package computes cheaper."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimol2_hf.modeling_unimol2 import UniMol2Layer, UniMol2OuterProductProjection

Model = TypeVar("Model", bound=nn.Module)


class MaterialisedProjection(UniMol2OuterProductProjection):
    """W vec(a_i (x) b_j) + bias with the (B, S, S, d * d) tensor in memory."""

    def forward(self, left: Tensor, right: Tensor, bias_scale: Tensor, residual: Tensor | None = None) -> Tensor:  # type: ignore[override]
        outer = (left[:, :, None, :, None] * right[:, None, :, None, :]).flatten(-2)
        update = nn.functional.linear(outer, self.weight) + self.bias * bias_scale
        return update if residual is None else residual + update


class PlainLayer(UniMol2Layer):
    """Every update of a layer in turn, whatever is read of it later, with PyTorch's own dropout."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        pair_states: Tensor,
        attention_mask: Tensor,
        token_mask: Tensor,
        lengths: Tensor,
        read_out: str = "pairs",
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        attended, _ = self.attention(self.attention_norm(hidden_states), pair_states, attention_mask, **kwargs)
        hidden_states = hidden_states + self._drop(attended)
        hidden_states = hidden_states + self._drop(self._plain_mlp(self.mlp, self.mlp_norm(hidden_states)))
        atoms = self.outer_product_norm(hidden_states)
        pair_states = pair_states + self._drop(self.outer_product(atoms, token_mask, lengths))
        gate, triangles = self.triangle(self.triangle_norm(pair_states), token_mask, lengths)
        shared = F.dropout(torch.ones_like(triangles[:, :1]), self.pair_dropout.p, self.training)
        pair_states = pair_states + gate * triangles * shared
        pair_states = pair_states + self._drop(self._plain_mlp(self.pair_mlp, self.pair_mlp_norm(pair_states)))
        return hidden_states, pair_states

    def _drop(self, update: Tensor) -> Tensor:
        return F.dropout(update, self.add_with_dropout.p, self.training)

    @staticmethod
    def _plain_mlp(mlp: Any, states: Tensor) -> Tensor:
        return mlp.fc2(mlp.dropout(mlp.activation(mlp.fc1(states))))


def naive(model: Model) -> Model:
    """A copy of the model, weights equal, that computes every layer and every outer product in full."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, UniMol2OuterProductProjection):
            module.__class__ = MaterialisedProjection
        elif isinstance(module, UniMol2Layer):
            module.__class__ = PlainLayer
    return plain


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    actual, expected = actual.detach(), expected.detach()
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
