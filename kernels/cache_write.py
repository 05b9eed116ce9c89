"""Cache write: store a step's keys and values in the paged cache, for layers whose rotation does not do it already.

Legend: T packed tokens, K kv heads, D head dim (Dv of the values), B blocks, S block size.
"""

import torch

from .attention_batch import AttentionBatch
from .dispatch import cache_write_for


def cache_write(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
) -> None:
    """Store each token's key and value in its slot of `batch.slot_mapping`; a negative slot stores nothing.

    Args:
        key: [T, K, D], positions already applied.
        value: [T, K, Dv].
        key_cache: [B, K, S, D]; written in place. Each [K, S, D] is contiguous, and on a CPU the distance between two
            blocks is a multiple of S * D.
        value_cache: [B, K, S, Dv], likewise.
        batch: the step's rows.

    Raises:
        ValueError: the tensors' shapes or dtypes do not fit each other or the batch.
    """
    cache_write_for(key.device.type)(key, value, key_cache, value_cache, batch)
