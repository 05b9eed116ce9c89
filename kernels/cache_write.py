"""The paged KV cache's memory, and how the CPU's attention stores a step's keys and values in it.

Legend: T packed tokens, K kv heads, D head dim (Dv of the values), B blocks, S block size.
"""

import torch


def empty_kv_cache(
    num_blocks: int,
    num_kv_heads: int,
    block_size: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> torch.Tensor:
    """Zero-filled keys or values of `num_blocks` blocks, [B, K, S, D].

    Contiguous on every device: the S keys of one head in one block, a page, are then one run of memory. A GPU reads it
    as one tile, and a CPU gathers the pages of many requests by copying whole runs, in the order that the matrix
    product wants. Zeros, because memory that was never written may hold NaN, and a weight of 0 does not remove a NaN.
    """
    # Written in full on purpose: memory that the kernel zeroes at its first use made single steps 250 ms longer.
    return torch.zeros(num_blocks, num_kv_heads, block_size, head_dim, dtype=dtype, device=device)


def cache_rows(slot_mapping: torch.Tensor, num_kv_heads: int, block_size: int) -> torch.Tensor:
    """Where tokens lie in a cache seen as [B * K * S, D]: [T * K] int64, the heads of a token side by side.

    Args:
        slot_mapping: [T] int64, none negative.
        num_kv_heads: K.
        block_size: S.
    """
    block, offset = slot_mapping // block_size, slot_mapping % block_size  # [T]
    heads = torch.arange(num_kv_heads, device=slot_mapping.device)  # [K]
    rows = (block.unsqueeze(1) * num_kv_heads + heads) * block_size + offset.unsqueeze(1)  # [T, K]
    return rows.flatten()


def write_rows(states: torch.Tensor, cache: torch.Tensor, rows: torch.Tensor) -> None:
    """Store `states` [T, K, D] in `cache` [B, K, S, D] at `rows` [T * K] of `cache_rows`."""
    head_dim = cache.shape[-1]
    # One index into rows of D: a third of the time of an index into blocks and one into offsets.
    cache.view(-1, head_dim).index_copy_(0, rows, states.reshape(-1, head_dim))


def clear_rows(cache: torch.Tensor, rows: torch.Tensor) -> None:
    """Zero `cache` [B, K, S, D] at `rows` of `cache_rows`."""
    cache.view(-1, cache.shape[-1]).index_fill_(0, rows, 0.0)
