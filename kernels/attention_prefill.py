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
from .attention_configs import PrefillConfig, padded, prefill_config
from .attention_decode import LOG2E
from .attention_decode_kernel import softcapped


@triton.jit(
    do_not_specialize=["first_row", "block_table_stride"],
    do_not_specialize_on_alignment=["block_table", "seq_lens", "query_start_loc"],
)
def prefill_kernel(
    query,
    key_cache,
    value_cache,
    block_table,
    seq_lens,
    query_start_loc,
    sinks,
    key_scale,
    value_scale,
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
    SCALED: tl.constexpr,
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
    full_start = 0
    if WINDOW > 0:
        start = tl.maximum(tile_position - WINDOW + 1, 0)
        full_start = tl.minimum(start + tl.cdiv(tl.maximum(end - WINDOW - start, 0), BLOCK_N) * BLOCK_N, end)
    full_end = tl.maximum(start + (tile_position + 1 - start) // BLOCK_N * BLOCK_N, full_start)
    keys = key_cache + kv_head.to(tl.int64) * key_stride_k
    values = value_cache + kv_head.to(tl.int64) * value_stride_k
    blocks = block_table + row * block_table_stride
    key_scale_of_head = scale
    if SCALED:
        key_scale_of_head = scale * tl.load(key_scale + kv_head)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    # Keys at the edge of a window, keys that all tokens of the tile see, keys at the diagonal.
    for part in tl.static_range(0 if WINDOW > 0 else 1, 3):
        first = start if part == 0 else (full_start if part == 1 else full_end)
        stop = full_start if part == 0 else (full_end if part == 1 else end)
        for key_start in range(first, stop, BLOCK_N):
            position = key_start + tl.arange(0, BLOCK_N)
            key_mask = (dim < HEAD_DIM)[None, :]
            value_mask = (value_dim < VALUE_HEAD_DIM)[None, :]
            inside = position < end
            if part != 1:
                key_mask = key_mask & inside[:, None]
                value_mask = value_mask & inside[:, None]
            block = tl.load(blocks + position // BLOCK_SIZE, mask=inside if part != 1 else None).to(tl.int64)
            offset = position % BLOCK_SIZE
            place = block * key_stride_b + offset * key_stride_s
            k = tl.load(keys + place[:, None] + dim[None, :], mask=key_mask, other=0.0)  # [BLOCK_N, BLOCK_D]
            place = block * value_stride_b + offset * value_stride_s
            v = tl.load(values + place[:, None] + value_dim[None, :], mask=value_mask, other=0.0)  # [BLOCK_N, BLOCK_DV]
            scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee")  # [BLOCK_M, BLOCK_N]
            if SOFTCAP:
                scores = softcapped(scores * key_scale_of_head, softcap, LOG2_E) * LOG2_E
            else:
                scores = scores * (key_scale_of_head * LOG2_E)
            if part != 1:
                visible = position[None, :] <= query_position[:, None]
                if WINDOW > 0:
                    visible = visible & (position[None, :] > query_position[:, None] - WINDOW)
                scores = tl.where(visible, scores, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(scores, 1))
            base = new_peak
            if part != 1:
                # A window may hide a whole tile of keys from some tokens: without a peak, -inf - -inf would be NaN.
                base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
            weights = tl.exp2(scores - base[:, None])
            shrink = tl.exp2(peak - base)
            total = total * shrink + tl.sum(weights, 1)
            accumulator *= shrink[:, None]
            accumulator = tl.dot(weights.to(q.dtype), v.to(q.dtype), accumulator, input_precision="ieee")
            peak = new_peak
    if SINKS:
        sink = tl.load(sinks + head, mask=valid, other=0.0).to(tl.float32) * LOG2_E
        base = tl.maximum(peak, sink)
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.exp2(sink - base)
        accumulator = accumulator * shrink[:, None]
    result = accumulator / tl.where(total == 0.0, 1.0, total)[:, None]
    if SCALED:
        result = result * tl.load(value_scale + kv_head)
    tl.store(
        output + (packed * output_stride_t + head * VALUE_HEAD_DIM)[:, None] + value_dim[None, :],
        result,
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
    *,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
    config: PrefillConfig | None = None,
) -> None:
    """Attend from the tokens of the batch's rows behind its decode rows.

    Computes `2 * n * H * (D + Dv)` floating-point operations, n being the pairs of a token and a key that it sees.

    Args:
        query: [T, H, D], D contiguous.
        key_cache: [B, K, S, D], the step's keys already stored; of the query's dtype or, with scales, float8.
        value_cache: [B, K, S, Dv], likewise.
        batch: the step's rows.
        output: [T, H, Dv] contiguous; the tokens of those rows are written.
        scale: factor of the scores.
        sliding_window: newest keys a token sees; None: all.
        softcap: see `cached_attention`.
        sinks: [H] or None.
        key_scale: [K] float32, by which what the cache holds of each head has to be multiplied; None: by nothing.
        value_scale: [K] float32, likewise; given if and only if `key_scale` is.
        config: how the work is cut; None: as `prefill_config` says.
    """
    num_heads, value_head_dim = query.shape[1], output.shape[2]
    _, num_kv_heads, block_size, head_dim = key_cache.shape
    group = num_heads // num_kv_heads
    config = config or prefill_config(max(head_dim, value_head_dim), group, key_cache.dtype)
    num_rows = batch.seq_lens.shape[0] - batch.num_decodes
    num_tiles = triton.cdiv(batch.max_query_len, config.block_m // group)
    prefill_kernel[(num_tiles, num_kv_heads, num_rows)](
        query,
        key_cache,
        value_cache,
        batch.block_table,
        batch.seq_lens,
        batch.query_start_loc,
        query if sinks is None else sinks,
        query if key_scale is None else key_scale,
        query if value_scale is None else value_scale,
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
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_D=padded(head_dim),
        BLOCK_DV=padded(value_head_dim),
        BLOCK_SIZE=block_size,
        WINDOW=sliding_window or 0,
        SOFTCAP=softcap is not None,
        SINKS=sinks is not None,
        SCALED=key_scale is not None,
        LOG2_E=LOG2E,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
