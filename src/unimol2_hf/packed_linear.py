"""Linear layers on weights that oneDNN has laid out for this processor: float32 inference on CPUs."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .modeling_unimol2 import UniMol2FeedForward

# Parameters; the packed copies of a larger model take more memory than their few per cent of speed are worth.
LARGEST_PACKED_MODEL = 200_000_000
_EXACT_GELU = "gelu"  # of the config; oneDNN fuses it into the product


class PackedLinear(nn.Linear):
    """`nn.Linear` that keeps a packed copy of its weight.

    The copy serves float32 inference alone. With gradients on, in another precision or on another device the plain
    layer runs, and a weight that was changed is packed anew: the answers are always the current weight's.
    """

    _packed: Tensor | None = None
    _packed_state: tuple[int, int] = (0, 0)

    def __getstate__(self) -> dict[str, Any]:
        # oneDNN's layout can be neither copied nor saved; it is made again.
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

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

    def _can_run(self, input: Tensor) -> bool:
        plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
        weight = self.weight
        fits = input.device.type == "cpu" and input.dtype == weight.dtype == torch.float32
        # A tensor made in inference mode does not tell when it changes.
        return fits and not plain and not weight.is_inference()

    def _packed_weight(self) -> Tensor:
        state = (self.weight.data_ptr(), self.weight._version)
        if self._packed is None or self._packed_state != state:
            with torch.no_grad():
                self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
            self._packed_state = state
        return self._packed


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
    for layer in model.layers:  # type: ignore[union-attr]
        for module in layer.modules():
            if type(module) is nn.Linear:
                module.__class__ = PackedLinear
            elif type(module) is UniMol2FeedForward and isinstance(module.activation, type(ACT2FN[_EXACT_GELU])):
                module.__class__ = PackedFeedForward
