"""Chooses the implementation of attention for a device; Triton is imported here, and only when a GPU asks for it."""

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch

from .attention_batch import AttentionBatch

Tensor: TypeAlias = torch.Tensor

AttentionFunction: TypeAlias = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor, AttentionBatch, float, int | None, float | None, Tensor | None], Tensor
]
"""`paged_attention` with positional arguments: query, key, value, key_cache, value_cache, batch, scale, sliding_window,
softcap, sinks."""


@cache
def attention_for(device_type: str) -> AttentionFunction:
    """Paged attention for "cpu" or "cuda"."""
    if device_type == "cpu":
        from .attention_cpu import attend as attend_cpu

        return attend_cpu
    from .attention_triton import attend as attend_triton

    return attend_triton
