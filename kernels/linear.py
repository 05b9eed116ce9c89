"""Linear layers on the CPU: products with a weight that was packed once.

Legend: T rows, K inputs, N outputs.

Three implementations stand behind one `PackedWeight`. Where the C kernels run, they do, in bfloat16 and float32: they
read weights at the memory's speed at few rows and reach the processor's peak at many, and a row's result does not
depend on the rows beside it. Processors with AMX tiles multiply bfloat16 several times as fast as the C kernels could,
so there, and wherever the C kernels do not run, the weight is packed for oneDNN.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch.nn import functional

from .checks import check_dtype, check_shape

Activation = Literal["none", "gelu"]
"""gelu: the exact one, with the error function."""


class PackedWeight(ABC):
    """A weight [N, K] with its bias [N], in a layout of its own; `pack_weight` makes it."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype

    @abstractmethod
    def unpack(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight [N, K] and the bias [N] that were packed."""

    @abstractmethod
    def multiply(self, x: torch.Tensor, residual: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        """`linear` with checked arguments."""


def pack_weight(weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedWeight:
    """Pack for `linear`; neither argument is needed afterwards.

    Args:
        weight: [N, K] on the CPU in bfloat16 or float32, rows contiguous in themselves.
        bias: [N] in the same dtype.
    """
    from .linear_native import NativeWeight, can_run_native

    if can_run_native(weight.dtype):
        return NativeWeight(weight, bias)
    from .linear_onednn import OneDnnWeight

    return OneDnnWeight(weight, bias)


def can_round_to_int8() -> bool:
    """Whether this machine has the kernels for `round_to_int8`."""
    from .linear_native import can_run_int8

    return can_run_int8()


def round_to_int8(packed: PackedWeight) -> PackedWeight:
    """The same weight in 8 bits, with which `linear` rounds its inputs to 8 bits as well.

    Each row of either has a scale of its own, its largest magnitude divided by 127.

    Args:
        packed: a bfloat16 weight; it can be dropped afterwards. Only where `can_round_to_int8`.
    """
    from .linear_native import Int8Weight

    weight, bias = packed.unpack()
    return Int8Weight(weight, bias)


def linear(
    x: torch.Tensor,
    packed: PackedWeight,
    residual: torch.Tensor | None = None,
    activation: Activation = "none",
) -> torch.Tensor:
    """`activation(x W^T + bias) + residual`, accumulated in float32 and rounded once.

    Args:
        x: [T, K] in the weight's dtype, rows contiguous in themselves.
        packed: W and the bias.
        residual: [T, N] in the same dtype, rows contiguous in themselves.
        activation: applied before the residual is added.

    Returns:
        [T, N] in the same dtype, contiguous.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if x.dtype is not packed.dtype or x.dim() != 2 or x.shape[1] != packed.in_features:
        check_shape("x", x, (None, packed.in_features))
        check_dtype("x", x, packed.dtype)
    if residual is not None and (residual.dtype is not packed.dtype or residual.shape != (len(x), packed.out_features)):
        check_shape("residual", residual, (x.shape[0], packed.out_features))
        check_dtype("residual", residual, packed.dtype)
    return packed.multiply(x, residual, activation)


def linear_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: Activation = "none",
) -> torch.Tensor:
    """`linear` in plain torch, with an ordinary `weight` [N, K]: computed in float32, rounded once."""
    output = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())  # [T, N]
    if activation == "gelu":
        output = functional.gelu(output)
    if residual is not None:
        output += residual.float()
    return output.to(x.dtype)
