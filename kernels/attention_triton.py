"""Paged attention on a GPU: store the step's keys and values, then the decode kernels and the prefill kernel."""

import torch

from .attention_batch import AttentionBatch
from .attention_decode import attend_decode
from .attention_prefill import attend_prefill
from .cache_write_triton import cache_write_triton
from .checks import check_attention


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`paged_attention` for GPU tensors; same arguments, same result. Never waits for the device."""
    num_slots = batch.slot_mapping.shape[0]
    check_attention(query, key, value, key_cache, value_cache, num_slots, batch.block_size, sinks)
    query, key, value = (states if states.stride(-1) == 1 else states.contiguous() for states in (query, key, value))
    cache_write_triton(key, value, key_cache, value_cache, batch.slot_mapping)
    output = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
    options = (scale, sliding_window, softcap, sinks)
    if batch.num_decodes:
        attend_decode(query, key_cache, value_cache, batch, output, *options)
    if batch.seq_lens.shape[0] > batch.num_decodes:
        attend_prefill(query, key_cache, value_cache, batch, output, *options)
    return output
