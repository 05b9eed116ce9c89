"""Paged attention on a GPU: the decode kernels and the prefill kernel."""

import torch

from .attention_batch import AttentionBatch
from .attention_decode import attend_decode
from .attention_prefill import attend_prefill
from .checks import check_attention


def attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`cached_attention` for GPU tensors; same arguments, same result. Never waits for the device."""
    num_tokens = batch.slot_mapping.shape[0]
    check_attention(query, key_cache, value_cache, num_tokens, batch.block_size, sinks)
    query = query if query.stride(-1) == 1 else query.contiguous()
    output = query.new_empty(num_tokens, query.shape[1], value_cache.shape[3])
    options = (scale, sliding_window, softcap, sinks)
    if batch.num_decodes:
        attend_decode(query, key_cache, value_cache, batch, output, *options)
    if batch.seq_lens.shape[0] > batch.num_decodes:
        attend_prefill(query, key_cache, value_cache, batch, output, *options)
    return output
