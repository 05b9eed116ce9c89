"""Triton attention of rows with several tokens over the paged cache: prompts, and what follows a cached prefix.

Legend: T packed tokens, R rows, H query heads, K kv heads, G = H / K, D head dim (Dv of the values), B blocks, S block
size; q tokens and L keys of a row.
"""

# Arguments of Triton kernels are device pointers and numbers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl

from .attention_batch import AttentionBatch
from .attention_decode import LOG2E
from .attention_decode_kernel import softcapped


@triton.jit
def prefill_kernel(
    query,
    key_cache,
    value_cache,
    block_table,
    seq_lens,
    query_start_loc,
    sinks,
    output,
    first_row,
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
    output_stride_t,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    LOG2_E: tl.constexpr,
):
    """Program (query tile, kv head, row): BLOCK_M matrix rows are BLOCK_M // G tokens times the G heads of a kv head.

    Tiles of keys that no token of the query tile sees are never read. Writes output [T, H, Dv].
    """
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    # The last tile of a prompt sees the most keys: started first, it does not end last.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head, row = tl.program_id(1), first_row + tl.program_id(2).to(tl.int64)
    first_token = tl.load(query_start_loc + row)
    query_len = tl.load(query_start_loc + row + 1) - first_token
    tile_token = tile * TOKENS
    if tile_token >= query_len:
        return
    seq_len = tl.load(seq_lens + row)
    matrix_row = tl.arange(0, BLOCK_M)
    token = tile_token + matrix_row // GROUP
    valid = (token < query_len) & (matrix_row < TOKENS * GROUP)
    head = kv_head * GROUP + matrix_row % GROUP
    query_position = seq_len - query_len + token  # [BLOCK_M]
    packed = (first_token + token).to(tl.int64)
    dim = tl.arange(0, BLOCK_D)
    value_dim = tl.arange(0, BLOCK_DV)
    q = tl.load(
        query + (packed * query_stride_t + head * query_stride_h)[:, None] + dim[None, :],
        mask=valid[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )  # [BLOCK_M, BLOCK_D]

    tile_position = seq_len - query_len + tile_token
    end = tl.minimum(tile_position + TOKENS, seq_len)
    start = 0
    if WINDOW > 0:
        start = tl.maximum(tile_position - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for key_start in range(start, end, BLOCK_N):
        position = key_start + tl.arange(0, BLOCK_N)
        inside = position < end
        block = tl.load(block_table + row * block_table_stride + position // BLOCK_SIZE, mask=inside, other=0)
        block = block.to(tl.int64)
        offset = position % BLOCK_SIZE
        k = tl.load(
            key_cache + (block * key_stride_b + kv_head * key_stride_k + offset * key_stride_s)[None, :] + dim[:, None],
            mask=inside[None, :] & (dim < HEAD_DIM)[:, None],
            other=0.0,
        )  # [BLOCK_D, BLOCK_N]
        v = tl.load(
            value_cache
            + (block * value_stride_b + kv_head * value_stride_k + offset * value_stride_s)[:, None]
            + value_dim[None, :],
            mask=inside[:, None] & (value_dim < VALUE_HEAD_DIM)[None, :],
            other=0.0,
        )  # [BLOCK_N, BLOCK_DV]
        scores = tl.dot(q, k, input_precision="ieee") * scale  # [BLOCK_M, BLOCK_N]
        if SOFTCAP:
            scores = softcapped(scores, softcap, LOG2_E)
        visible = position[None, :] <= query_position[:, None]
        if WINDOW > 0:
            visible = visible & (position[None, :] > query_position[:, None] - WINDOW)
        scores = tl.where(visible, scores * LOG2_E, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        # A window may hide a whole tile of keys from some tokens: without a peak, -inf - -inf would be NaN.
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weights, 1)
        accumulator = accumulator * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        peak = new_peak
    if SINKS:
        sink = tl.load(sinks + head, mask=valid, other=0.0).to(tl.float32) * LOG2_E
        base = tl.maximum(peak, sink)
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.exp2(sink - base)
        accumulator = accumulator * shrink[:, None]
    tl.store(
        output + (packed * output_stride_t + head * VALUE_HEAD_DIM)[:, None] + value_dim[None, :],
        accumulator / tl.where(total == 0.0, 1.0, total)[:, None],
        mask=valid[:, None] & (value_dim < VALUE_HEAD_DIM)[None, :],
    )


def attend_prefill(
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
    """Attend from the tokens of the batch's rows behind its decode rows.

    Args:
        query: [T, H, D], D contiguous.
        key_cache: [B, K, S, D], the step's keys already stored.
        value_cache: [B, K, S, Dv], likewise.
        batch: the step's rows.
        output: [T, H, Dv] contiguous; the tokens of those rows are written.
        scale: factor of the scores.
        sliding_window: newest keys a token sees; None: all.
        softcap: see `paged_attention`.
        sinks: [H] or None.
    """
    num_heads, value_head_dim = query.shape[1], output.shape[2]
    _, num_kv_heads, block_size, head_dim = key_cache.shape
    group = num_heads // num_kv_heads
    block_d = max(16, triton.next_power_of_2(head_dim))
    block_m, block_n, num_warps = tile_sizes(group, block_d, query.dtype)
    num_rows = batch.seq_lens.shape[0] - batch.num_decodes
    num_tiles = triton.cdiv(batch.max_query_len, block_m // group)
    prefill_kernel[(num_tiles, num_kv_heads, num_rows)](
        query,
        key_cache,
        value_cache,
        batch.block_table,
        batch.seq_lens,
        batch.query_start_loc,
        query if sinks is None else sinks,
        output,
        batch.num_decodes,
        scale,
        softcap or 0.0,
        *query.stride()[:2],
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        batch.block_table.stride(0),
        output.stride(0),
        GROUP=group,
        HEAD_DIM=head_dim,
        VALUE_HEAD_DIM=value_head_dim,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        BLOCK_DV=max(16, triton.next_power_of_2(value_head_dim)),
        BLOCK_SIZE=block_size,
        WINDOW=sliding_window or 0,
        SOFTCAP=softcap is not None,
        SINKS=sinks is not None,
        LOG2_E=LOG2E,
        num_warps=num_warps,
        num_stages=2,
    )


def tile_sizes(group: int, block_d: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Matrix rows and keys of a tile, and warps of a program: as large as shared memory and registers allow."""
    large = block_d > 128 or dtype == torch.float32
    block_m = max(64 if large else 128, int(triton.next_power_of_2(group)))
    return block_m, 32 if large else 64, 4 if large or block_d <= 64 else 8
