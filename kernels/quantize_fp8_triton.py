"""Triton kernels that quantise rows to float8, as they are or of a gated MLP: one program a row, read twice.

The second reading comes out of the cache. Legend: T packed tokens, E numbers of a row, F feed-forward size.
"""

# Arguments of Triton kernels are device pointers and numbers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl

from .quantize_fp8 import FP8, MAX_FP8, MIN_PEAK

TILE = 2048  # sixteen numbers for each thread of four warps


@triton.jit
def to_fp8(values, scale, LARGEST: tl.constexpr):
    """Divide by the scale and round; rounding must not reach beyond the largest number."""
    return tl.minimum(tl.maximum(values / scale, -LARGEST), LARGEST).to(tl.float8e4nv)


@triton.jit
def _values(row, index, size, inside, GATED: tl.constexpr):
    """Numbers of a row in float32; GATED: silu of its first half times the second, `size` being that of a half."""
    values = tl.load(row + index, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        values = values * tl.sigmoid(values) * tl.load(row + size + index, mask=inside, other=0.0).to(tl.float32)
    return values


@triton.jit
def quantize_fp8_kernel(
    x, output, scales, size, GATED: tl.constexpr, TILE: tl.constexpr, LARGEST: tl.constexpr, MIN: tl.constexpr
):
    """Program row: output [T, size] and scales [T] of x [T, size] or, GATED, [T, 2 * size], all contiguous."""
    row = tl.program_id(0).to(tl.int64)
    source = x + row * size * (2 if GATED else 1)
    index = tl.arange(0, TILE)
    peaks = tl.zeros([TILE], tl.float32)
    for start in range(0, size, TILE):
        inside = start + index < size
        peaks = tl.maximum(peaks, tl.abs(_values(source, start + index, size, inside, GATED)))
    scale = tl.maximum(tl.max(peaks, 0), MIN) / LARGEST
    tl.store(scales + row, scale)
    for start in range(0, size, TILE):
        inside = start + index < size
        values = _values(source, start + index, size, inside, GATED)
        tl.store(output + row * size + start + index, to_fp8(values, scale, LARGEST), mask=inside)


def quantize_fp8_triton(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_fp8` for GPU tensors. Moves `T * E` elements and as many bytes."""
    return _quantize(x.contiguous(), x.shape[1], gated=False)


def silu_mul_fp8_triton(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`silu_mul_fp8` for GPU tensors. Moves `2 * T * F` elements and `T * F` bytes."""
    return _quantize(gate_up.contiguous(), gate_up.shape[1] // 2, gated=True)


def _quantize(x: torch.Tensor, size: int, *, gated: bool) -> tuple[torch.Tensor, torch.Tensor]:
    num_tokens = x.shape[0]
    output = x.new_empty(num_tokens, size, dtype=FP8)
    scales = x.new_empty(num_tokens, 1, dtype=torch.float32)
    quantize_fp8_kernel[(num_tokens,)](x, output, scales, size, GATED=gated, TILE=TILE, LARGEST=MAX_FP8, MIN=MIN_PEAK)
    return output, scales
