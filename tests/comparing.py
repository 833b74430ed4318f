"""Equal weights are equal to the bit; equal outputs are equal to a tolerance."""

import torch
from torch import Tensor, nn

# Of one model's weights in two places. Memory-mapped weights, say, lie at other alignments than computed ones, another
# kernel of the same product then runs and adds in another order: units in the last place of float32 (1.2e-7), which
# grow some tenfold over the layers of a test's model.
OUTPUT_RTOL, OUTPUT_ATOL = 1e-5, 1e-6


def assert_same_weights(actual: nn.Module, expected: nn.Module) -> None:
    """Every parameter and buffer, by name, to the bit."""
    ours, theirs = actual.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name, tensor in theirs.items() if not torch.equal(ours[name], tensor)]
    assert not different


def assert_same_output(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=OUTPUT_RTOL, atol=OUTPUT_ATOL)
