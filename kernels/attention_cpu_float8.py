"""Paged attention over float8 caches on the CPU: the step's blocks are widened first, which is slow and for trials.

Legend: T packed tokens, R requests (rows), H query heads, K kv heads, D head dim (Dv of the values), B blocks, S block
size, n blocks of the step.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from .attention_batch import AttentionBatch, HostBatch
from .checks import check_attention
from .dispatch import attention_for
from .quantize_fp8 import FP8


class _Widened(NamedTuple):
    """The blocks of a step, and the batch over a cache of these alone."""

    blocks: torch.Tensor  # [n] int64
    batch: AttentionBatch


def attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    *,
    key_scale: torch.Tensor,
    value_scale: torch.Tensor,
) -> torch.Tensor:
    """`cached_attention` of float8 caches for CPU tensors; same arguments, same result."""
    check_attention(query, key_cache, value_cache, batch.slot_mapping.shape[0], batch.block_size, sinks, FP8)
    widened: _Widened | None = batch.plans.get(_Widened)
    if widened is None:
        widened = batch.plans[_Widened] = _plan(batch)
    if not len(widened.blocks):
        return query.new_zeros(query.shape[0], query.shape[1], value_cache.shape[3])
    keys = _widen(key_cache, widened.blocks, key_scale, query.dtype)  # [n, K, S, D]
    values = _widen(value_cache, widened.blocks, value_scale, query.dtype)  # [n, K, S, Dv]
    attend_plain = attention_for(query, keys, values)
    return attend_plain(query, keys, values, widened.batch, scale, sliding_window, softcap, sinks)


def _plan(batch: AttentionBatch) -> _Widened:
    host, size = batch.host, batch.block_size
    num_blocks = -(-host.seq_lens // size)  # [R]
    in_use = np.arange(host.block_table.shape[1]) < num_blocks[:, None]  # [R, max_blocks]
    blocks, places = np.unique(host.block_table[in_use], return_inverse=True)
    table = np.zeros_like(host.block_table)
    table[in_use] = places
    slots = host.slot_mapping
    moved = np.searchsorted(blocks, slots // size) * size + slots % size
    moved = np.where(slots >= 0, moved, -1).astype(np.int64)
    return _Widened(
        torch.from_numpy(blocks.astype(np.int64)),
        replace(
            batch,
            block_table=torch.from_numpy(table),
            slot_mapping=torch.from_numpy(moved),
            host=HostBatch(table, host.seq_lens, host.query_start_loc, moved),
            plans={},
        ),
    )


def _widen(cache: torch.Tensor, blocks: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Blocks of a cache [B, K, S, D] as numbers of `dtype`, [n, K, S, D]."""
    # As bytes, because torch copies no rows of float8 on a CPU.
    wide = cache.view(torch.uint8)[blocks].view(FP8).float().mul_(scale.view(-1, 1, 1))
    # Slots that nobody wrote hold what was there before, maybe another model's: whatever it is, times 0 has to be 0.
    return wide.nan_to_num_().to(dtype)
