"""Triton kernel that applies everything that changes logits before sampling.

Legend: R rows, V vocabulary, E entries of all rows, S rows of the table of counts, M masks, W words of a mask.
"""

# Arguments of Triton kernels are device pointers and numbers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl

from .change_logits import LogitChanges

TILE, ENTRIES = 2048, 128  # tokens of one program; entries that it looks at together
_LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def change_logits_kernel(
    logits,
    entry_starts,
    entry_ids,
    entry_values,
    count_rows,
    penalties,
    counts,
    mask_rows,
    bits,
    values,
    vocab_size,
    logits_stride_r,
    bits_stride_m,
    TILE: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """One program for TILE tokens of one row."""
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE
    token = first + tl.arange(0, TILE)
    inside = token < vocab_size
    values += row * vocab_size
    x = tl.load(logits + row * logits_stride_r + token, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(x != x, float("-inf"), tl.minimum(x, _LARGEST))

    start, end = tl.load(entry_starts + row), tl.load(entry_starts + row + 1)
    if start < end:
        # Entries are few and anywhere, so they are added in memory.
        tl.store(values + token, x, mask=inside)
        tl.debug_barrier()  # other threads of the program read what was stored, here and below
        for block in range(start, end, ENTRIES):
            entry = block + tl.arange(0, ENTRIES)
            entry_id = tl.load(entry_ids + entry, mask=entry < end, other=-1)
            here = (entry_id >= first) & (entry_id < first + TILE)
            added = tl.load(entry_values + entry, mask=here, other=0.0)
            old = tl.load(values + entry_id, mask=here, other=0.0)
            tl.store(values + entry_id, old + added, mask=here)
        tl.debug_barrier()
        x = tl.load(values + token, mask=inside, other=0.0)

    count_row = tl.load(count_rows + row).to(tl.int64)
    if count_row >= 0:
        count = tl.load(counts + count_row * vocab_size + token, mask=inside, other=0)
        repetition = tl.load(penalties + row * 3)
        presence = tl.load(penalties + row * 3 + 1)
        frequency = tl.load(penalties + row * 3 + 2)
        num_output = count >> 1  # the lowest bit is the prompt's
        seen = tl.where(x > 0, x / repetition, x * repetition)
        seen -= frequency * num_output.to(tl.float32) + tl.where(num_output > 0, presence, 0.0)
        x = tl.where(count > 0, seen, x)

    mask_row = tl.load(mask_rows + row).to(tl.int64)
    if mask_row >= 0:
        word = tl.load(bits + mask_row * bits_stride_m + token // 32, mask=inside, other=0)
        x = tl.where(((word >> (token % 32)) & 1) == 0, float("-inf"), x)
    tl.store(values + token, x, mask=inside)


def change_logits_triton(
    logits: torch.Tensor, changes: LogitChanges, tile: int = TILE, entries: int = ENTRIES
) -> torch.Tensor:
    """`change_logits.change_logits`.

    Args:
        logits: [R, V] of any float dtype, contiguous in V.
        changes: for each row, all contiguous.
        tile: tokens of one program, a power of 2.
        entries: that a program looks at together, a power of 2.
    """
    num_rows, vocab_size = logits.shape
    values = torch.empty(num_rows, vocab_size, dtype=torch.float32, device=logits.device)
    if not num_rows:
        return values
    change_logits_kernel[(num_rows, triton.cdiv(vocab_size, tile))](
        logits,
        changes.entry_starts,
        changes.entry_ids,
        changes.entry_values,
        changes.count_rows,
        changes.penalties,
        changes.counts,
        changes.mask_rows,
        changes.bits,
        values,
        vocab_size,
        logits.stride(0),
        changes.bits.stride(0),
        TILE=tile,
        ENTRIES=entries,
    )
    return values
