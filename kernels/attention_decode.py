"""Attention of rows with one token or a few on a GPU: launches the decode kernel.

Legend: T packed tokens, R decode rows, H query heads, K kv heads, D head dim (Dv of the values), B blocks, S block
size.
"""

from functools import cache

import torch
import triton

from .attention_batch import AttentionBatch
from .attention_configs import DecodeConfig, decode_config, padded
from .attention_decode_kernel import decode_kernel

LOG2E = 1.4426950408889634
_MAX_MEMBERS = 32  # tokens of a row times query heads of a kv head
_COMBINED = 4096  # numbers of parts that a program adds up at once: 32 for each thread of four warps


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
    *,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
    config: DecodeConfig | None = None,
) -> None:
    """Attend from the tokens of the batch's first rows, so many as `num_rows_with_few_tokens` says.

    Reads `sum(seq_lens) * K * (D + Dv)` cached numbers, at most `sliding_window` tokens of each row, and computes
    `2 * sum(seq_lens) * H * (D + Dv)` floating-point operations.

    Args:
        query: [T, H, D], D contiguous.
        key_cache: [B, K, S, D], the step's keys already stored; of the query's dtype or, with scales, float8.
        value_cache: [B, K, S, Dv], likewise.
        batch: the step's rows.
        output: [T, H, Dv] contiguous; those tokens are written.
        scale: factor of the scores.
        sliding_window: newest keys a token sees; None: all.
        softcap: see `cached_attention`.
        sinks: [H] or None.
        key_scale: [K] float32, by which what the cache holds of each head has to be multiplied; None: by nothing.
        value_scale: [K] float32, likewise; given if and only if `key_scale` is.
        config: how the work is cut; None: as `decode_config` says.
    """
    num_heads, value_head_dim = query.shape[1], output.shape[2]
    _, num_kv_heads, block_size, head_dim = key_cache.shape
    group = num_heads // num_kv_heads
    rows = num_rows_with_few_tokens(batch, group)
    tokens = int(triton.next_power_of_2(batch.max_query_len)) if rows > batch.num_decodes else 1
    config = config or decode_config(max(head_dim, value_head_dim), key_cache.dtype)
    num_programs = config.programs_per_processor * _num_processors(query.device)
    part_outputs = query.new_empty(num_programs, 2, tokens * group, value_head_dim, dtype=torch.float32)
    part_lse = query.new_empty(num_programs, 2, tokens * group, dtype=torch.float32)
    block_dv, part_rows = padded(value_head_dim), int(triton.next_power_of_2(tokens * group))
    decode_kernel[(num_programs,)](
        query,
        key_cache,
        value_cache,
        batch.block_table,
        batch.seq_lens,
        batch.query_start_loc,
        query if sinks is None else sinks,
        query if key_scale is None else key_scale,
        query if value_scale is None else value_scale,
        part_outputs,
        part_lse,
        _counters(batch, rows * num_kv_heads, query.device),
        output,
        rows,
        scale,
        softcap or 0.0,
        *query.stride()[:2],
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        batch.block_table.stride(0),
        TOKENS=tokens,
        GROUP=group,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        VALUE_HEAD_DIM=value_head_dim,
        BLOCK_R=max(256, int(triton.next_power_of_2(rows))),
        BLOCK_G=max(16, part_rows),
        BLOCK_D=padded(head_dim),
        BLOCK_DV=block_dv,
        BLOCK_SIZE=block_size,
        TILE=config.tile,
        MIN_TILES=config.min_tiles,
        ROWS=part_rows,
        PARTS=parts_at_once(part_rows, block_dv),
        WINDOW=sliding_window or 0,
        SOFTCAP=softcap is not None,
        SINKS=sinks is not None,
        SCALED=key_scale is not None,
        LOG2_E=LOG2E,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def num_rows_with_few_tokens(batch: AttentionBatch, group: int) -> int:
    """How many of the batch's rows, the first ones, are computed as decode rows.

    All of them if the others have so few tokens, as those that verify guessed ones, that these and the heads of a group
    are the rows of one small matrix product. Their keys are then shared out over all programs, too.
    """
    few = int(triton.next_power_of_2(max(1, batch.max_query_len))) * group <= _MAX_MEMBERS
    return batch.seq_lens.shape[0] if few else batch.num_decodes


def parts_at_once(part_rows: int, block_dv: int) -> int:
    """Parts of a segment that are put together in one go: a power of two, like both sizes of a part."""
    return max(1, _COMBINED // (part_rows * block_dv))


def _counters(batch: AttentionBatch, size: int, device: torch.device) -> torch.Tensor:
    """Zeros in which the programs count, [R * K] int32 at least; the kernel leaves zeros behind.

    They belong to the step. Those of a capture are apart from those of its warm-up, so that the graph itself clears
    them and they lie in its memory.
    """
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    key = ("decode counters", capturing)
    counters: torch.Tensor | None = batch.plans.get(key)
    if counters is None or counters.shape[0] < size:
        counters = batch.plans[key] = torch.zeros(size, dtype=torch.int32, device=device)
    return counters


@cache
def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4  # the interpreter: few enough for programs of several segments, enough for segments of several
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
