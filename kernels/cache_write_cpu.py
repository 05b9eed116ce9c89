"""How the CPU's torch code sees a paged KV cache, and stores a step's keys and values in it.

A cache is [B, K, S, D], possibly with the caches of other layers between two of its blocks. The S keys of one head in
one block, a page, are one run of memory: the CPU gathers the pages of many requests by copying whole runs, in the order
that the matrix product wants, and a GPU reads them as one tile.

Legend: T packed tokens, K kv heads, D head dim (Dv of the values), B blocks, S block size.
"""

from typing import NamedTuple

import torch

from .attention_batch import AttentionBatch
from .checks import check_cache_write


class CacheKind(NamedTuple):
    """Everything about a layer that the places of its keys and values depend on."""

    num_kv_heads: int
    key_block_pages: int
    """`pages_per_block` of the keys' cache."""
    value_block_pages: int


class StoredRows(NamedTuple):
    """Where layers of one kind store the keys and values of one step."""

    tokens: torch.Tensor | None
    """[at most T] int64: the tokens to store; None: all."""
    key_rows: torch.Tensor  # [stored tokens * K] int64, `cache_rows`
    value_rows: torch.Tensor  # the same tensor if keys and values lie alike


def cache_write_cpu(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
) -> None:
    """`cache_write` for CPU tensors; same arguments."""
    kind = CacheKind(key.shape[1], pages_per_block(key_cache), pages_per_block(value_cache))
    rows: StoredRows | None = batch.plans.get(kind)
    if rows is None:
        check_cache_write(key, value, key_cache, value_cache, batch.slot_mapping.shape[0])
        rows = batch.plans[kind] = _stored_rows(batch, kind)
    if rows.tokens is not None:
        key, value = key[rows.tokens], value[rows.tokens]
    write_rows(key, as_pages(key_cache), rows.key_rows)
    write_rows(value, as_pages(value_cache), rows.value_rows)


def _stored_rows(batch: AttentionBatch, kind: CacheKind) -> StoredRows:
    slots, tokens = batch.slot_mapping, None
    if bool((slots < 0).any()):
        tokens = (slots >= 0).nonzero().flatten()
        slots = slots[tokens]
    key_rows = cache_rows(slots, kind.num_kv_heads, batch.block_size, kind.key_block_pages)
    if kind.value_block_pages == kind.key_block_pages:
        return StoredRows(tokens, key_rows, key_rows)
    value_rows = cache_rows(slots, kind.num_kv_heads, batch.block_size, kind.value_block_pages)
    return StoredRows(tokens, key_rows, value_rows)


def as_pages(cache: torch.Tensor) -> torch.Tensor:
    """A cache [B, K, S, D] as rows of memory, [pages, S * D], each of which is one head of one block: a page.

    Between the pages of two blocks lie those of other layers, so that `pages` is more than B * K; page `k` of block `b`
    is row `b * pages_per_block(cache) + k`.
    """
    num_blocks, num_kv_heads, block_size, head_dim = cache.shape
    size = block_size * head_dim
    num_pages = (num_blocks - 1) * (cache.stride(0) // size) + num_kv_heads
    return cache.as_strided((num_pages, size), (size, 1))


def pages_per_block(cache: torch.Tensor) -> int:
    """Distance between two blocks of a cache [B, K, S, D], counted in pages; it is a whole number of them."""
    return cache.stride(0) // (cache.shape[2] * cache.shape[3])


def cache_rows(slot_mapping: torch.Tensor, num_kv_heads: int, block_size: int, block_pages: int) -> torch.Tensor:
    """Where tokens lie in a cache's pages seen as [pages * S, D]: [T * K] int64, the heads of a token side by side.

    Args:
        slot_mapping: [T] int64, none negative.
        num_kv_heads: K.
        block_size: S.
        block_pages: `pages_per_block` of the cache.
    """
    block, offset = slot_mapping // block_size, slot_mapping % block_size  # [T]
    heads = torch.arange(num_kv_heads, device=slot_mapping.device)  # [K]
    rows = (block.unsqueeze(1) * block_pages + heads) * block_size + offset.unsqueeze(1)  # [T, K]
    return rows.flatten()


def write_rows(states: torch.Tensor, pages: torch.Tensor, rows: torch.Tensor) -> None:
    """Store `states` [T, K, D] in the pages of a cache, of `as_pages`, at `rows` [T * K] of `cache_rows`."""
    head_dim = states.shape[-1]
    # One index into rows of D: a third of the time of an index into blocks and one into offsets.
    pages.view(-1, head_dim).index_copy_(0, rows, states.reshape(-1, head_dim))


def clear_rows(pages: torch.Tensor, head_dim: int, rows: torch.Tensor) -> None:
    """Zero the pages of a cache, of `as_pages`, at `rows` of `cache_rows`."""
    pages.view(-1, head_dim).index_fill_(0, rows, 0.0)
