"""Linear layers in float8: weights with a scale for each output, inputs with one for each token.

A weight takes half the memory of bfloat16 and is read in half the time, and Hopper multiplies float8 twice as fast. The
product is torch's own; the scales are applied to its float32 sums. Legend: T packed tokens, K inputs, N outputs.
"""

from dataclasses import dataclass

import torch

from .checks import check_dtype, check_shape
from .quantize_fp8 import FP8, quantize_fp8_reference

ALIGNMENT = 16
"""K and N must be multiples of it."""


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """The weight of a linear layer."""

    weight: torch.Tensor  # [N, K] float8 e4m3, contiguous
    scale: torch.Tensor  # [N, 1] float32


def can_quantize_weight(weight: torch.Tensor) -> bool:
    """Whether a weight [N, K] has sizes that the products of float8 take."""
    return weight.dim() == 2 and all(size % ALIGNMENT == 0 for size in weight.shape)


def quantize_weight_fp8(weight: torch.Tensor) -> Fp8Weight:
    """Quantise a weight, each output by its own scale.

    Args:
        weight: [N, K] of any float dtype.

    Raises:
        ValueError: N or K is not a multiple of 16.
    """
    if not can_quantize_weight(weight):
        raise ValueError(f"weight has shape {list(weight.shape)}; both sizes must be multiples of {ALIGNMENT}")
    return Fp8Weight(*quantize_fp8_reference(weight))


def linear_fp8(
    x: torch.Tensor,
    scale: torch.Tensor,
    weight: Fp8Weight,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """`x * scale @ weight.T + bias`. Computes `2 * T * N * K` floating-point operations and reads `N * K` bytes.

    Args:
        x: [T, K] float8 e4m3, contiguous: the rows of `quantize_fp8`.
        scale: [T, 1] float32, contiguous: their scales.
        weight: of `quantize_weight_fp8`.
        bias: [N] of `dtype`, or None.
        dtype: of the output; a GPU computes only bfloat16.

    Returns:
        [T, N] of `dtype`.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    num_outputs, num_inputs = weight.weight.shape
    check_dtype("x", x, FP8)
    check_shape("x", x, (None, num_inputs))
    check_shape("scale", scale, (x.shape[0], 1))
    if bias is not None:
        check_shape("bias", bias, (num_outputs,))
    return torch._scaled_mm(
        x,
        weight.weight.t(),
        scale_a=scale,
        scale_b=weight.scale.t(),
        bias=bias,
        out_dtype=dtype,
        # Hopper then keeps the sums in its matrix unit: fewer of their bits, but nothing waits for their addition.
        use_fast_accum=x.is_cuda,
    )
