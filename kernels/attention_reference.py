"""Paged attention as its definition says it, one request at a time in float32: the fast paths are tested against it.

Legend: T packed tokens, H query heads, K kv heads, D head dim (Dv of the values), B blocks, S block size; q tokens and
L keys of one request.
"""

import torch

from .attention_batch import AttentionBatch


def cache_write_reference(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
) -> None:
    """`cache_write`, token by token; same arguments."""
    block_size = key_cache.shape[2]
    for token, slot in enumerate(batch.slot_mapping.tolist()):
        if slot >= 0:
            key_cache[slot // block_size, :, slot % block_size] = key[token]
            value_cache[slot // block_size, :, slot % block_size] = value[token]


def attend_reference(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`cached_attention`; same arguments, same result."""
    output = query.new_zeros(query.shape[0], query.shape[1], value_cache.shape[3])  # [T, H, Dv]
    starts = batch.query_start_loc.tolist()
    for row, seq_len in enumerate(batch.seq_lens.tolist()):
        tokens = slice(starts[row], starts[row + 1])
        keys = _read(key_cache, batch.block_table[row], seq_len)  # [L, K, D]
        values = _read(value_cache, batch.block_table[row], seq_len)  # [L, K, Dv]
        if seq_len:
            output[tokens] = _attend_row(query[tokens], keys, values, scale, sliding_window, softcap, sinks)
    return output


def _read(cache: torch.Tensor, blocks: torch.Tensor, seq_len: int) -> torch.Tensor:
    """First `seq_len` cached states of a request, [L, K, D]."""
    return cache[blocks.long()].transpose(1, 2).flatten(0, 1)[:seq_len]


def _attend_row(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    num_tokens, num_heads, _ = query.shape
    seq_len, num_kv_heads, _ = keys.shape
    keys = keys.repeat_interleave(num_heads // num_kv_heads, dim=1).float()  # [L, H, D]
    values = values.repeat_interleave(num_heads // num_kv_heads, dim=1).float()  # [L, H, Dv]
    scores = torch.einsum("qhd,lhd->hql", query.float(), keys) * scale  # [H, q, L]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    query_positions = torch.arange(seq_len - num_tokens, seq_len, device=query.device).unsqueeze(1)  # [q, 1]
    key_positions = torch.arange(seq_len, device=query.device)  # [L]
    visible = key_positions <= query_positions  # [q, L]
    if sliding_window is not None:
        visible &= key_positions > query_positions - sliding_window
    scores = scores.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        sink = sinks.float().view(num_heads, 1, 1).expand(num_heads, num_tokens, 1)
        scores = torch.cat([scores, sink], dim=-1)  # [H, q, L + 1]
    weights = torch.softmax(scores, dim=-1)[..., :seq_len]  # [H, q, L]
    return torch.einsum("hql,lhd->qhd", weights, values).to(query.dtype)
