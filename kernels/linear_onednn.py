"""Linear layers by oneDNN, with weights in its own blocked layout.

Legend: T rows, K inputs, N outputs.
"""

import torch
from torch.nn import functional

from .linear import Activation, PackedWeight

# oneDNN picks the blocked layout for a number of rows. Packed for 64 rows, weights are as fast as any other packing at
# 1 to 512 rows, in bfloat16 and float32; float32 packed for 1 row is slower by half.
_PACKED_FOR_ROWS = 64


class OneDnnWeight(PackedWeight):
    """A weight as an opaque tensor: its dtype and shape can be read, its elements cannot."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """`weight` [N, K], `bias` [N]."""
        super().__init__(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _PACKED_FOR_ROWS)
        self._bias = None if bias is None else bias.detach()

    def unpack(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight [N, K] and the bias [N] that were packed."""
        return self._weight.to_dense(), self._bias

    def multiply(self, x: torch.Tensor, residual: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        """`linear` with checked arguments."""
        output: torch.Tensor
        if activation == "none" and residual is not None:
            operation = torch.ops.mkldnn._linear_pointwise.binary
            output = operation(x, residual, self._weight, self._bias, "add")
            return output
        output = torch.ops.mkldnn._linear_pointwise.default(x, self._weight, self._bias, "none", [], "")
        if activation == "gelu":
            output = functional.gelu(output)
        return output if residual is None else output.add_(residual)
