"""Paged attention: the operation that every attention layer of a generating model calls.

Legend: T packed tokens, R requests (rows), H query heads, K kv heads, D head dim (Dv of the values), B blocks, S block
size.
"""

import torch

from .attention_batch import AttentionBatch
from .cache_write import cache_write
from .dispatch import attention_for, scaled_attention_for

__all__ = ["AttentionBatch", "cached_attention", "paged_attention"]


def paged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Store the step's keys and values, then attend causally from each token to its row's keys.

    `cache_write`, then `cached_attention`, whose arguments these are.

    Args:
        query: [T, H, D].
        key: [T, K, D], positions already applied.
        value: [T, K, Dv].
        key_cache: [B, K, S, D]; written in place.
        value_cache: [B, K, S, Dv], likewise.
        batch: the step's rows.
        scale: as there.
        sliding_window: as there.
        softcap: as there.
        sinks: as there.
        key_scale: as there.
        value_scale: as there.

    Returns:
        [T, H, Dv] of the query's dtype, contiguous.

    Raises:
        ValueError: the tensors' shapes or dtypes do not fit each other or the batch.
    """
    cache_write(key, value, key_cache, value_cache, batch, key_scale=key_scale, value_scale=value_scale)
    return cached_attention(
        query,
        key_cache,
        value_cache,
        batch,
        scale=scale,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=sinks,
        key_scale=key_scale,
        value_scale=value_scale,
    )


def cached_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend causally from each token to its row's keys, which are in the cache, those of the step among them.

    All keys of the step are stored before any is read, because a row may share blocks that another row fills in the
    same step.

    Args:
        query: [T, H, D], positions already applied; H a multiple of K.
        key_cache: [B, K, S, D]. Each [K, S, D] is contiguous, and on a CPU the distance between two blocks is a
            multiple of S * D. Slots behind a row's last token may be written: a CPU clears those of blocks that the
            step begins.
        value_cache: [B, K, S, Dv], likewise.
        batch: the step's rows.
        scale: factor of the scores.
        sliding_window: newest keys a token sees, its own included; None: all.
        softcap: scores become `softcap * tanh(score / softcap)` (Gemma 2, arXiv 2408.00118); None: they stay.
        sinks: [H]; one more logit a head in the softmax's denominator, without a value (gpt-oss); None: none.
        key_scale: [K] float32; the caches are then float8 e4m3 and hold keys divided by the scale of their head.
        value_scale: [K] float32, likewise; given if and only if `key_scale` is.

    Returns:
        [T, H, Dv] of the query's dtype, contiguous.

    Raises:
        ValueError: the tensors' shapes or dtypes do not fit each other or the batch.
    """
    arguments = (query, key_cache, value_cache, batch, scale, sliding_window, softcap, sinks)
    if key_scale is None:
        return attention_for(query, key_cache, value_cache)(*arguments)
    return scaled_attention_for(query.device.type)(*arguments, key_scale=key_scale, value_scale=value_scale)
