"""The paged keys and values of each layer of a model: how large they are, and the memory for them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from penstock.kernels.cache_write import empty_kv_cache

# K kv heads, D head dim (Dv of the values), B blocks, S block size


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one token's keys and values look like in one layer."""

    num_kv_heads: int
    head_dim: int
    value_head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values."""
        return self.num_kv_heads * (self.head_dim + self.value_head_dim) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The paged keys and values of one layer."""

    key: torch.Tensor  # [B, K, S, D]
    value: torch.Tensor  # [B, K, S, Dv]


def allocate_caches(
    shapes: Mapping[int, LayerShape], num_blocks: int, block_size: int, device: torch.device
) -> dict[int, LayerCache]:
    """Zero-filled caches of `num_blocks` blocks for every layer, by layer index."""

    def empty(shape: LayerShape, head_dim: int) -> torch.Tensor:
        return empty_kv_cache(num_blocks, shape.num_kv_heads, block_size, head_dim, shape.dtype, device)

    return {
        layer_idx: LayerCache(empty(shape, shape.head_dim), empty(shape, shape.value_head_dim))
        for layer_idx, shape in shapes.items()
    }
