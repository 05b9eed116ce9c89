"""Where the keys and values of each layer of a model lie in the memory that all models share.

That memory, the arena, is one tensor of bytes. Block b of a model is its bytes [b * n, (b + 1) * n), n being the bytes
of a block, and holds the keys and values of all the model's layers, one layer after the other. So whatever sizes the
layers of different models have, a block is one run of memory that can go from one model to another, and each layer's
cache is a strided view [B, K, S, D] of the same bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

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
    """The paged keys and values of one layer; those in float8 are divided by the scale of their head."""

    key: torch.Tensor  # [B, K, S, D]
    value: torch.Tensor  # [B, K, S, Dv]
    key_scale: torch.Tensor | None = None  # [K] float32, as in `KVScales`; both or none
    value_scale: torch.Tensor | None = None  # [K] float32


@dataclass(frozen=True, slots=True)
class KVScales:
    """What keys and values in float8 have been divided by, by head."""

    key: torch.Tensor  # [K] float32
    value: torch.Tensor  # [K] float32


def bytes_per_block(shapes: Mapping[int, LayerShape], block_size: int) -> int:
    """Bytes of one block over all layers.

    A multiple of the bytes of every page, one head of one block in one layer, because the CPU's attention counts the
    distance between blocks in pages. All pages of most models have one size, and then nothing is added.
    """
    page_bytes = {
        block_size * head_dim * shape.dtype.itemsize
        for shape in shapes.values()
        for head_dim in (shape.head_dim, shape.value_head_dim)
    }
    unit = math.lcm(*page_bytes)
    needed = block_size * sum(shape.bytes_per_token for shape in shapes.values())
    return -(-needed // unit) * unit


def view_caches(
    arena: torch.Tensor,
    shapes: Mapping[int, LayerShape],
    block_size: int,
    scales: Mapping[int, KVScales] | None = None,
) -> dict[int, LayerCache]:
    """The cache of every layer, by layer index, as views of `arena`, a flat tensor of bytes.

    Args:
        arena: all the memory.
        shapes: of the layers.
        block_size: tokens in a block.
        scales: of all layers, if they are in float8.

    Raises:
        ValueError: not even one block fits.
    """
    block_bytes = bytes_per_block(shapes, block_size)
    num_blocks = arena.numel() // block_bytes
    if num_blocks < 1:
        raise ValueError(f"one block takes {block_bytes} bytes, but the KV memory has {arena.numel()}")
    offset = 0

    def view(shape: LayerShape, head_dim: int) -> torch.Tensor:
        nonlocal offset
        size, page = shape.dtype.itemsize, block_size * head_dim  # bytes, elements
        cache = arena[: num_blocks * block_bytes].view(shape.dtype)
        start = offset // size
        offset += shape.num_kv_heads * page * size
        return cache.as_strided(
            (num_blocks, shape.num_kv_heads, block_size, head_dim), (block_bytes // size, page, head_dim, 1), start
        )

    caches = {}
    for layer_idx, shape in shapes.items():
        cache = LayerCache(view(shape, shape.head_dim), view(shape, shape.value_head_dim))
        if scales is not None:
            cache = LayerCache(cache.key, cache.value, scales[layer_idx].key, scales[layer_idx].value)
        caches[layer_idx] = cache
    return caches
