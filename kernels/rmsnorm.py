"""Root-mean-square norm of rows, alone or with the addition of the residual stream before it.

Both compute in float32 and round once, at the end; the sum is rounded to the stream's dtype first, as the layers of
transformers do. Legend: T packed tokens, E hidden size.
"""

import torch

from .native import is_native
from .rmsnorm_native import add_rms_norm_native, rms_norm_native

_NATIVE_WEIGHTS = (torch.bfloat16, torch.float32)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` (arXiv 1910.07467).

    Args:
        x: [T, E], E contiguous.
        weight: [E], contiguous, of the dtype of `x` or wider.
        eps: added to the mean square.

    Returns:
        [T, E] of the dtype of `x`, contiguous.
    """
    if x.is_cpu:
        fast = rms_norm_native if is_native(x) and weight.dtype in _NATIVE_WEIGHTS else rms_norm_reference
        return fast(x, weight, eps)
    from .rmsnorm_triton import rms_norm_triton

    return rms_norm_triton(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rms_norm` of `x + residual`, and that sum.

    Args:
        x: [T, E], E contiguous.
        residual: [T, E], likewise, of the same dtype.
        weight: [E], contiguous, of the dtype of `x` or wider.
        eps: added to the mean square.

    Returns:
        The norm and the sum, each [T, E] of the dtype of `x` and contiguous.
    """
    if x.is_cpu:
        fast = add_rms_norm_native if is_native(x) and weight.dtype in _NATIVE_WEIGHTS else add_rms_norm_reference
        return fast(x, residual, weight, eps)
    from .rmsnorm_triton import add_rms_norm_triton

    return add_rms_norm_triton(x, residual, weight, eps)


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`rms_norm` in plain torch."""
    wide = x.float()  # [T, E]
    # On a CPU torch puts its own rms_norm together from twice as many operations.
    length: torch.Tensor = torch.linalg.vector_norm(wide, 2, -1, True)  # [T, 1]
    scale = (length * length / x.shape[-1]).add_(eps).rsqrt_()  # [T, 1]
    return (wide * scale).mul_(weight).to(x.dtype)


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`add_rms_norm` in plain torch."""
    total = x + residual
    return rms_norm_reference(total, weight, eps), total
