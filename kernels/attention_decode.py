"""Triton attention of rows with one token over the paged cache, the keys of a row split over several programs.

At decode the keys are read once and hardly computed with, so speed is memory bandwidth: the query heads of one kv head
share each key as the rows of one matrix product, and long rows are cut so that few requests fill the GPU too. The
grid depends on sizes that a captured graph fixes; lengths are read on the device.

Legend: R decode rows, H query heads, K kv heads, G = H / K, D head dim (Dv of the values), B blocks, S block size, P
splits.
"""

# Arguments of Triton kernels are device pointers and numbers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from .attention_batch import AttentionBatch

_TILE = 64  # keys of one matrix product
_MIN_SPLIT_LEN = 256  # fewer keys than this are not worth a program and its share of the reduction
_MAX_SPLITS = 32
LOG2E = 1.4426950408889634


@triton.jit
def softcapped(scores, softcap, LOG2_E: tl.constexpr):
    """Cap the scores: softcap * tanh(scores / softcap), with tanh(x) = 1 - 2 / (1 + exp(2x))."""
    return softcap * (1.0 - 2.0 / (1.0 + tl.exp2(scores / softcap * (2.0 * LOG2_E))))


@triton.jit
def split_range(seq_len, split, SPLITS: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr, MIN_LEN: tl.constexpr):
    """First and end key of a row's split; both kernels work it out from the row's length. Empty if first >= end."""
    first = 0
    if WINDOW > 0:
        first = tl.maximum(seq_len - WINDOW, 0)
    tiles = tl.cdiv(tl.cdiv(seq_len - first, SPLITS), TILE)
    split_len = tl.maximum(tiles * TILE, MIN_LEN)
    start = first + split * split_len
    return start, tl.minimum(start + split_len, seq_len)


@triton.jit
def decode_kernel(
    query,
    key_cache,
    value_cache,
    block_table,
    seq_lens,
    partial_output,
    partial_lse,
    scale,
    softcap,
    query_stride_t,
    query_stride_h,
    key_stride_b,
    key_stride_k,
    key_stride_s,
    value_stride_b,
    value_stride_k,
    value_stride_s,
    block_table_stride,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_HEAD_DIM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
    MIN_LEN: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LOG2_E: tl.constexpr,
):
    """Program (row, kv head, split): attention over the split's keys alone.

    Writes partial_output [R, H, P, Dv] and partial_lse [R, H, P], the log2 of the sum of exponentials, both float32.
    """
    row, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    seq_len = tl.load(seq_lens + row)
    start, end = split_range(seq_len, split, SPLITS, WINDOW, TILE, MIN_LEN)
    if start >= end:
        return
    group = tl.arange(0, BLOCK_G)
    dim = tl.arange(0, BLOCK_D)
    value_dim = tl.arange(0, BLOCK_DV)
    head = kv_head * GROUP + group
    q = tl.load(
        query + row * query_stride_t + head[:, None] * query_stride_h + dim[None, :],
        mask=(group < GROUP)[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )  # [BLOCK_G, BLOCK_D]
    peak = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    output = tl.zeros([BLOCK_G, BLOCK_DV], tl.float32)
    for tile_start in range(start, end, TILE):
        position = tile_start + tl.arange(0, TILE)
        inside = position < end
        block = tl.load(block_table + row * block_table_stride + position // BLOCK_SIZE, mask=inside, other=0)
        block = block.to(tl.int64)
        offset = position % BLOCK_SIZE
        k = tl.load(
            key_cache + (block * key_stride_b + kv_head * key_stride_k + offset * key_stride_s)[None, :] + dim[:, None],
            mask=inside[None, :] & (dim < HEAD_DIM)[:, None],
            other=0.0,
        )  # [BLOCK_D, TILE]
        v = tl.load(
            value_cache
            + (block * value_stride_b + kv_head * value_stride_k + offset * value_stride_s)[:, None]
            + value_dim[None, :],
            mask=inside[:, None] & (value_dim < VALUE_HEAD_DIM)[None, :],
            other=0.0,
        )  # [TILE, BLOCK_DV]
        scores = tl.dot(q, k, input_precision="ieee") * scale  # [BLOCK_G, TILE]
        if SOFTCAP:
            scores = softcapped(scores, softcap, LOG2_E)
        scores = tl.where(inside[None, :], scores * LOG2_E, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 1)
        output = output * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        peak = new_peak
    place = ((row * tl.num_programs(1) + kv_head) * GROUP + group) * SPLITS + split
    tl.store(partial_lse + place, peak + tl.log2(total), mask=group < GROUP)
    tl.store(
        partial_output + place[:, None] * VALUE_HEAD_DIM + value_dim[None, :],
        output / total[:, None],
        mask=(group < GROUP)[:, None] & (value_dim < VALUE_HEAD_DIM)[None, :],
    )


@triton.jit
def reduce_splits_kernel(
    partial_output,
    partial_lse,
    seq_lens,
    sinks,
    output,
    VALUE_HEAD_DIM: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
    MIN_LEN: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    LOG2_E: tl.constexpr,
):
    """Program (row, head): weigh the splits' outputs by their sums of exponentials. Writes output [R, H, Dv]."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    split = tl.arange(0, SPLITS)
    value_dim = tl.arange(0, BLOCK_DV)
    start, end = split_range(tl.load(seq_lens + row), split, SPLITS, WINDOW, TILE, MIN_LEN)
    used = start < end
    index = row * tl.num_programs(1) + head
    lse = tl.load(partial_lse + index * SPLITS + split, mask=used, other=float("-inf"))
    peak = tl.max(lse, 0)
    peak = tl.where(peak == float("-inf"), 0.0, peak)  # a padding row has no keys: its output is zero
    sink_share = 0.0
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        peak = tl.maximum(peak, sink)
        sink_share = tl.exp2(sink - peak)
    weights = tl.exp2(lse - peak)
    total = tl.sum(weights, 0) + sink_share
    parts = tl.load(
        partial_output + (index * SPLITS + split)[:, None] * VALUE_HEAD_DIM + value_dim[None, :],
        mask=used[:, None] & (value_dim < VALUE_HEAD_DIM)[None, :],
        other=0.0,
    )  # [P, BLOCK_DV]
    result = tl.sum(parts * weights[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(output + index * VALUE_HEAD_DIM + value_dim, result, mask=value_dim < VALUE_HEAD_DIM)


def attend_decode(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    output: torch.Tensor,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> None:
    """Attend from the tokens of the batch's decode rows, which are its first tokens.

    Args:
        query: [T, H, D], D contiguous.
        key_cache: [B, K, S, D], the step's keys already stored.
        value_cache: [B, K, S, Dv], likewise.
        batch: the step's rows.
        output: [T, H, Dv] contiguous; its first `num_decodes` tokens are written.
        scale: factor of the scores.
        sliding_window: newest keys a token sees; None: all.
        softcap: see `paged_attention`.
        sinks: [H] or None.
    """
    rows, num_heads, value_head_dim = batch.num_decodes, query.shape[1], output.shape[2]
    _, num_kv_heads, block_size, head_dim = key_cache.shape
    group = num_heads // num_kv_heads
    splits = num_splits(rows * num_kv_heads, batch.max_seq_len, _num_processors(query.device))
    partial_output = query.new_empty(rows, num_heads, splits, value_head_dim, dtype=torch.float32)
    partial_lse = query.new_empty(rows, num_heads, splits, dtype=torch.float32)
    block_dv = max(16, triton.next_power_of_2(value_head_dim))
    shared: dict[str, Any] = {
        "VALUE_HEAD_DIM": value_head_dim,
        "BLOCK_DV": block_dv,
        "TILE": _TILE,
        "SPLITS": splits,
        "MIN_LEN": _MIN_SPLIT_LEN,
        "WINDOW": sliding_window or 0,
        "LOG2_E": LOG2E,
    }
    decode_kernel[(rows, num_kv_heads, splits)](
        query,
        key_cache,
        value_cache,
        batch.block_table,
        batch.seq_lens,
        partial_output,
        partial_lse,
        scale,
        softcap or 0.0,
        *query.stride()[:2],
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        batch.block_table.stride(0),
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_G=max(16, triton.next_power_of_2(group)),
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_SIZE=block_size,
        SOFTCAP=softcap is not None,
        num_warps=4,
        num_stages=2,
        **shared,
    )
    reduce_splits_kernel[(rows, num_heads)](
        partial_output,
        partial_lse,
        batch.seq_lens,
        partial_lse if sinks is None else sinks,
        output,
        SINKS=sinks is not None,
        **shared,
    )


def num_splits(num_programs: int, max_seq_len: int, num_processors: int) -> int:
    """Splits of a row, a power of two: enough for two programs a processor, none shorter than worth it."""
    wanted = min(-(-2 * num_processors // num_programs), -(-max_seq_len // _MIN_SPLIT_LEN), _MAX_SPLITS)
    return int(triton.next_power_of_2(max(1, wanted)))


@cache
def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 8  # the interpreter: a few splits, to exercise them
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
