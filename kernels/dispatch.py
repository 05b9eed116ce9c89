"""Chooses the implementations of attention and cache write for a device; Triton is imported only for a GPU."""

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch

from . import attention_cpu, attention_native
from .attention_batch import AttentionBatch

Tensor: TypeAlias = torch.Tensor

AttentionFunction: TypeAlias = Callable[
    [Tensor, Tensor, Tensor, AttentionBatch, float, int | None, float | None, Tensor | None], Tensor
]
"""`cached_attention` with positional arguments: query, key_cache, value_cache, batch, scale, sliding_window, softcap,
sinks."""

ScaledAttentionFunction: TypeAlias = Callable[..., Tensor]
"""The same, and `key_scale` and `value_scale` by name: over caches of float8."""

CacheWriteFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, AttentionBatch], None]
"""`cache_write`: key, value, key_cache, value_cache, batch."""


def attention_for(query: Tensor, key_cache: Tensor, value_cache: Tensor) -> AttentionFunction:
    """What computes `cached_attention` for these tensors on their device."""
    if query.device.type != "cpu":
        return _triton_attention()
    return _cpu_attention(query.dtype, query.shape[1], key_cache.shape[1:], value_cache.shape[3])


@cache
def scaled_attention_for(device_type: str) -> ScaledAttentionFunction:
    """What computes `cached_attention` over caches of float8, for "cpu" or "cuda"."""
    if device_type != "cpu":
        return _triton_attention()
    from .attention_cpu_float8 import attend

    return attend


@cache
def _triton_attention() -> AttentionFunction:
    from .attention_triton import attend

    return attend


@cache
def _cpu_attention(
    dtype: torch.dtype, num_heads: int, key_block: tuple[int, ...], value_head_dim: int
) -> AttentionFunction:
    """Native code where it can; `key_block` is [K, S, D]."""
    if attention_native.can_attend(dtype, num_heads, key_block, value_head_dim):
        return attention_native.attend
    return attention_cpu.attend


@cache
def cache_write_for(device_type: str) -> CacheWriteFunction:
    """Cache write for "cpu" or "cuda"."""
    if device_type == "cpu":
        from .cache_write_cpu import cache_write_cpu

        return cache_write_cpu
    from .cache_write_triton import cache_write_triton

    return cache_write_triton
