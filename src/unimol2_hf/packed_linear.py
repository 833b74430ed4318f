"""Linear layers on weights that oneDNN has laid out for this processor: float32 inference on CPUs."""

import math
import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .modeling_unimol2 import UniMol2FeedForward, UniMol2OuterProductProjection
from .ops_unimol2 import is_float32_inference_on_cpu

# Parameters; the packed copies of a larger model take more memory than their few per cent of speed are worth.
LARGEST_PACKED_MODEL = 200_000_000
# oneDNN and PyTorch each compile a product for every shape and keep the last 1,024: of batches of all sizes, with nano,
# 400 MB that come little by little. Both read this before their first product; 16 cost a sixth of the time, 64 nothing.
_CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KEPT_PRODUCTS = "64"
# Of the outer product's intermediate result, 8 MiB.
WORK_ELEMENTS = 2**21
_EXACT_GELU = "gelu"  # of the config; oneDNN fuses it into the product


class _PackedLayer(nn.Module):
    """A layer with a weight that keeps a second copy of its weight in a layout of its own.

    The copy serves float32 inference alone. With gradients on, in another precision or on another device the plain
    layer runs, and a weight that was changed is packed anew: the answers are always the current weight's.
    """

    weight: Any
    _packed: Tensor | None = None
    _packed_state: tuple[int, int] = (0, 0)

    def _pack(self) -> Tensor:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        # oneDNN's layout can be neither copied nor saved; it is made again.
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

    def _can_run(self, *inputs: Tensor) -> bool:
        # A tensor made in inference mode does not tell when it changes.
        return is_float32_inference_on_cpu(*inputs, self.weight) and not self.weight.is_inference()

    def _packed_weight(self) -> Tensor:
        state = (self.weight.data_ptr(), self.weight._version)
        if self._packed is None or self._packed_state != state:
            with torch.no_grad():
                self._packed = self._pack()
            self._packed_state = state
        return self._packed


class PackedLinear(_PackedLayer, nn.Linear):
    """`nn.Linear` on oneDNN's layout."""

    def forward(self, input: Tensor) -> Tensor:
        return self._run(input, "none") if self._can_run(input) else super().forward(input)

    def run_with_gelu(self, input: Tensor) -> Tensor:
        """The layer and the exact GELU behind it in one pass."""
        return self._run(input, "gelu") if self._can_run(input) else nn.functional.gelu(super().forward(input))

    def _run(self, input: Tensor, activation: str) -> Tensor:
        algorithm = "none" if activation == "gelu" else ""
        weight = self._packed_weight()
        output: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, self.bias, activation, [], algorithm)
        return output

    def _pack(self) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
        return packed


class PackedOuterProduct(_PackedLayer, UniMol2OuterProductProjection):
    """W vec(a_i (x) b_j) with W applied to a, some atoms at a time.

    W a_i (d, P) of one atom is then a plain matrix, and its product with all b_j (S, d) is what the pair track holds of
    atom i, in place. A few atoms' share stays in the cache; of all atoms it is 5 times the pair track's size at 84M.
    """

    def forward(self, left: Tensor, right: Tensor, bias_scale: Tensor, residual: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """See `UniMol2OuterProductProjection.forward`."""
        if residual is None or not self._can_run(left, residual):
            return super().forward(left, right, bias_scale, residual)
        batch, length, inner = left.shape
        width, atoms = residual.shape[-1], batch * length
        weight, left, pairs = self._packed_weight(), left.flatten(0, 1), residual.reshape(atoms, length, width)
        # All b_j again for each atom i.
        right = right.unsqueeze(1).expand(batch, length, length, inner).reshape(atoms, length, inner)
        bias = (self.bias * bias_scale).expand(batch, length, 1, width).reshape(atoms, 1, width)
        output = torch.empty_like(pairs)
        at_once = max(1, WORK_ELEMENTS // weight.shape[1])
        work = left.new_empty(min(at_once, atoms), weight.shape[1])
        for start in range(0, atoms, at_once):
            part = slice(start, start + at_once)
            mapped = torch.mm(left[part], weight, out=work[: len(left[part])]).view(-1, inner, width)
            torch.add(pairs[part], bias[part], out=output[part]).baddbmm_(right[part], mapped)
        return output.view_as(residual)

    def _pack(self) -> Tensor:
        """(d, d * P): row c, column e * P + p hold W[p, c, e]; c counts a's numbers, e b's."""
        inner = math.isqrt(self.weight.shape[1])
        return self.weight.view(-1, inner, inner).permute(1, 2, 0).reshape(inner, -1)


class PackedFeedForward(UniMol2FeedForward):
    """The feed-forward with its GELU inside the first product."""

    def forward(self, states: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.fc1.run_with_gelu(states)))  # type: ignore[operator]


def pack_linear_layers(model: nn.Module) -> None:
    """Make the linear layers inside the two-track layers packed ones, in place; parameters keep their names.

    The packed copies take as much memory again as the weights. Does nothing where PyTorch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for name in _CAPACITIES:
        os.environ.setdefault(name, KEPT_PRODUCTS)
    for layer in model.layers:  # type: ignore[union-attr]
        for module in layer.modules():
            if type(module) is nn.Linear:
                module.__class__ = PackedLinear
            elif type(module) is UniMol2OuterProductProjection:
                module.__class__ = PackedOuterProduct
            elif type(module) is UniMol2FeedForward and isinstance(module.activation, type(ACT2FN[_EXACT_GELU])):
                module.__class__ = PackedFeedForward
