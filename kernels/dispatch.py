"""Chooses the implementations of attention and cache write for a device; Triton is imported only for a GPU."""

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch

from .attention_batch import AttentionBatch

Tensor: TypeAlias = torch.Tensor

AttentionFunction: TypeAlias = Callable[
    [Tensor, Tensor, Tensor, AttentionBatch, float, int | None, float | None, Tensor | None], Tensor
]
"""`cached_attention` with positional arguments: query, key_cache, value_cache, batch, scale, sliding_window, softcap,
sinks."""

CacheWriteFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, AttentionBatch], None]
"""`cache_write`: key, value, key_cache, value_cache, batch."""


@cache
def attention_for(device_type: str) -> AttentionFunction:
    """Paged attention for "cpu" or "cuda"."""
    if device_type == "cpu":
        from .attention_cpu import attend as attend_cpu

        return attend_cpu
    from .attention_triton import attend as attend_triton

    return attend_triton


@cache
def cache_write_for(device_type: str) -> CacheWriteFunction:
    """Cache write for "cpu" or "cuda"."""
    if device_type == "cpu":
        from .cache_write_cpu import cache_write_cpu

        return cache_write_cpu
    from .cache_write_triton import cache_write_triton

    return cache_write_triton
