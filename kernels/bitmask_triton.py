"""Triton kernel that makes the tokens impossible that a grammar forbids.

Legend: R rows of logits, N rows with a mask, V vocabulary, W words of a mask.
"""

# Arguments of Triton kernels are device pointers and numbers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl

_TILE = 4096


@triton.jit
def bitmask_kernel(
    logits,
    rows,
    bits,
    vocab_size,
    logits_stride_r,
    bits_stride_n,
    TILE: tl.constexpr,
):
    """One program for TILE tokens of one mask; what is allowed is neither read nor written."""
    mask = tl.program_id(0)
    token = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = token < vocab_size
    row = tl.load(rows + mask)
    word = tl.load(bits + mask * bits_stride_n + token // 32, mask=inside, other=-1)
    forbidden = ((word >> (token % 32)) & 1) == 0
    nothing = tl.full([TILE], float("-inf"), tl.float32)
    tl.store(logits + row * logits_stride_r + token, nothing, mask=inside & forbidden)


def apply_bitmask_triton(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    """Set logits to -inf, in place, where a mask has a 0.

    Args:
        logits: [R, V] float32, contiguous in V.
        rows: [N] int64, the row of each mask.
        bits: [N, W] int32, contiguous in W.
    """
    vocab_size = logits.shape[1]
    grid = (len(rows), triton.cdiv(vocab_size, _TILE))
    bitmask_kernel[grid](logits, rows, bits, vocab_size, logits.stride(0), bits.stride(0), TILE=_TILE)
