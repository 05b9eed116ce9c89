"""Numbers in 8 bits with one scale a token, as the matrix products of float8 take them.

Each row is divided by `max|row| / 448`, 448 being the largest number of float8 e4m3, and rounded. The operations that
come before a matrix product quantise what they have in registers, so that it is neither rounded nor stored in between.
Legend: T packed tokens, E numbers of a row, F feed-forward size.
"""

import torch
from torch.nn import functional

from .rmsnorm import rms_norm_reference

FP8 = torch.float8_e4m3fn
MAX_FP8 = 448.0
MIN_PEAK = 1e-12
"""Rows whose numbers are all smaller have the scale of this one: a row of zeros has one that can be divided by."""


def quantize_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise rows.

    Args:
        x: [T, E], contiguous.

    Returns:
        The rows [T, E] in float8 e4m3, contiguous, and their scales [T, 1] float32: `x` is about their product.
    """
    if x.is_cpu:
        return quantize_fp8_reference(x)
    from .quantize_fp8_triton import quantize_fp8_triton

    return quantize_fp8_triton(x)


def rms_norm_fp8(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_fp8` of `rms_norm`, whose arguments these are."""
    if x.is_cpu:
        return quantize_fp8_reference(rms_norm_reference(x.float(), weight, eps))
    from .rmsnorm_triton import rms_norm_fp8_triton

    return rms_norm_fp8_triton(x, weight, eps)


def add_rms_norm_fp8(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`quantize_fp8` of the norm of `add_rms_norm`, and its sum: rows, scales, sum."""
    if x.is_cpu:
        total = x + residual
        return *quantize_fp8_reference(rms_norm_reference(total.float(), weight, eps)), total
    from .rmsnorm_triton import add_rms_norm_fp8_triton

    return add_rms_norm_fp8_triton(x, residual, weight, eps)


def silu_mul_fp8(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_fp8` of `silu_mul`, whose argument [T, 2F] this is."""
    if gate_up.is_cpu:
        gate, up = gate_up.float().chunk(2, dim=-1)  # [T, F] each
        return quantize_fp8_reference(functional.silu(gate) * up)
    from .quantize_fp8_triton import silu_mul_fp8_triton

    return silu_mul_fp8_triton(gate_up)


def quantize_heads_fp8(states: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Keys or values [T, K, D] in float8 e4m3, divided by the scale of their head, [K] float32."""
    return (states.float() / scale.unsqueeze(1)).clamp_(-MAX_FP8, MAX_FP8).to(FP8)


def quantize_fp8_reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_fp8` in plain torch."""
    wide = x.float()
    scale = wide.abs().amax(1, keepdim=True).clamp_(min=MIN_PEAK) / MAX_FP8  # [T, 1]
    return (wide / scale).clamp_(-MAX_FP8, MAX_FP8).to(FP8), scale
