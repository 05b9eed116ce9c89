"""Triton kernel of the RMS norm, with or without the addition before it: one program a row, read and written once.

Legend: T packed tokens, E hidden size.
"""

# Arguments of Triton kernels are device pointers and numbers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl

from .checks import check_dtype, check_shape
from .quantize_fp8 import FP8, MAX_FP8, MIN_PEAK
from .quantize_fp8_triton import to_fp8

_MAX_TILE = 16384  # elements of a row that a program keeps in registers: 64 a thread of 8 warps


@triton.jit
def _load_sum(x, residual, total, index, inside, ADD: tl.constexpr):
    """Elements of a row in float32; with ADD those of the sum, which is stored, as rounded by the store."""
    values = tl.load(x + index, mask=inside, other=0.0)
    if ADD:
        values = values.to(tl.float32) + tl.load(residual + index, mask=inside, other=0.0).to(tl.float32)
        values = values.to(total.dtype.element_ty)
        tl.store(total + index, values, mask=inside)
    return values.to(tl.float32)


@triton.jit
def rms_norm_kernel(
    x,
    residual,
    weight,
    total,
    output,
    scales,
    x_stride_t,
    residual_stride_t,
    eps,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    ADD: tl.constexpr,
    QUANTIZE: tl.constexpr,
    LARGEST: tl.constexpr,
    MIN: tl.constexpr,
):
    """Program row: output [T, E] and, with ADD, total [T, E], both contiguous; with QUANTIZE, scales [T] of the output.

    A row of at most TILE elements stays in registers; a wider one is read again, out of the cache, once its mean
    square is known.
    """
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride_t
    residual += row * residual_stride_t
    total += row * SIZE
    output += row * SIZE
    index = tl.arange(0, TILE)
    if SIZE <= TILE:
        inside = index < SIZE
        values = _load_sum(x, residual, total, index, inside, ADD)
        scale = tl.rsqrt(tl.sum(values * values, 0) / SIZE + eps)
        normed = values * scale * tl.load(weight + index, mask=inside, other=0.0).to(tl.float32)
        if QUANTIZE:
            row_scale = tl.maximum(tl.max(tl.abs(normed), 0), MIN) / LARGEST
            tl.store(scales + row, row_scale)
            tl.store(output + index, to_fp8(normed, row_scale, LARGEST), mask=inside)
        else:
            tl.store(output + index, normed, mask=inside)
    else:
        tl.static_assert(not QUANTIZE, "rows to be quantised must fit into one tile")
        squares = tl.zeros([TILE], tl.float32)
        for start in range(0, SIZE, TILE):
            inside = start + index < SIZE
            values = _load_sum(x, residual, total, start + index, inside, ADD)
            squares += values * values
        scale = tl.rsqrt(tl.sum(squares, 0) / SIZE + eps)
        for start in range(0, SIZE, TILE):
            inside = start + index < SIZE
            # The sum is computed again: what another thread of this program stored is not read back.
            values = _load_sum(x, residual, total, start + index, inside, ADD)
            normed = values * scale * tl.load(weight + start + index, mask=inside, other=0.0).to(tl.float32)
            tl.store(output + start + index, normed, mask=inside)


def rms_norm_triton(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`rms_norm` for GPU tensors. Moves `2 * T * E` elements."""
    output = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(x, None, weight, None, output, None, eps)
    return output


def add_rms_norm_triton(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`add_rms_norm` for GPU tensors. Moves `4 * T * E` elements."""
    check_shape("residual", residual, tuple(x.shape))
    check_dtype("residual", residual, x.dtype)
    output, total = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
    _launch(x, residual, weight, total, output, None, eps)
    return output, total


def rms_norm_fp8_triton(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`rms_norm_fp8` for GPU tensors, of at most 16384 columns. Moves `T * E` elements and as many bytes."""
    output, scales = _new_fp8(x)
    _launch(x, None, weight, None, output, scales, eps)
    return output, scales


def add_rms_norm_fp8_triton(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`add_rms_norm_fp8` for GPU tensors, of at most 16384 columns. Moves `3 * T * E` elements and `T * E` bytes."""
    check_shape("residual", residual, tuple(x.shape))
    check_dtype("residual", residual, x.dtype)
    output, scales = _new_fp8(x)
    total = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(x, residual, weight, total, output, scales, eps)
    return output, scales, total


def _new_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if x.shape[1] > _MAX_TILE:
        raise ValueError(f"x has {x.shape[1]} columns; a norm that quantises takes at most {_MAX_TILE}")
    output = x.new_empty(x.shape, dtype=FP8)
    return output, x.new_empty(x.shape[0], 1, dtype=torch.float32)


def tile_size(size: int) -> tuple[int, int]:
    """Elements of a row that are handled at once, a power of two, and the warps that do it: 16 or more a thread."""
    tile = min(max(32, triton.next_power_of_2(size)), _MAX_TILE)
    return tile, min(max(1, tile // 512), 8)


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    total: torch.Tensor | None,
    output: torch.Tensor,
    scales: torch.Tensor | None,
    eps: float,
) -> None:
    num_tokens, size = x.shape
    check_shape("weight", weight, (size,))
    tile, num_warps = tile_size(size)
    rms_norm_kernel[(num_tokens,)](
        x,
        x if residual is None else residual,
        weight,
        output if total is None else total,
        output,
        output if scales is None else scales,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        eps,
        SIZE=size,
        TILE=tile,
        ADD=residual is not None,
        QUANTIZE=scales is not None,
        LARGEST=MAX_FP8,
        MIN=MIN_PEAK,
        num_warps=num_warps,
    )
