"""Cache write: store a step's keys and values in the paged cache, for layers whose rotation does not do it already.

Legend: T packed tokens, K kv heads, D head dim (Dv of the values), B blocks, S block size.
"""

import torch

from .attention_batch import AttentionBatch
from .checks import check_dtype
from .dispatch import cache_write_for
from .quantize_fp8 import FP8, quantize_heads_fp8


def cache_write(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    *,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
) -> None:
    """Store each token's key and value in its slot of `batch.slot_mapping`; a negative slot stores nothing.

    Args:
        key: [T, K, D], positions already applied.
        value: [T, K, Dv].
        key_cache: [B, K, S, D]; written in place. Each [K, S, D] is contiguous, and on a CPU the distance between two
            blocks is a multiple of S * D.
        value_cache: [B, K, S, Dv], likewise.
        batch: the step's rows.
        key_scale: [K] float32; the caches are then float8 e4m3 and get keys divided by the scale of their head.
        value_scale: [K] float32, likewise; given if and only if `key_scale` is.

    Raises:
        ValueError: the tensors' shapes or dtypes do not fit each other or the batch.
    """
    if key_scale is not None and value_scale is not None:
        for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
            check_dtype(name, cache, FP8)
        # From here on they are bytes, which every device copies.
        key = quantize_heads_fp8(key, key_scale).view(torch.uint8)
        value = quantize_heads_fp8(value, value_scale).view(torch.uint8)
        key_cache, value_cache = key_cache.view(torch.uint8), value_cache.view(torch.uint8)
    cache_write_for(key.device.type)(key, value, key_cache, value_cache, batch)
