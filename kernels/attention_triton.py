"""Paged attention on a GPU: the decode kernels and the prefill kernel."""

import torch

from .attention_batch import AttentionBatch
from .attention_decode import attend_decode, num_rows_with_few_tokens
from .attention_prefill import attend_prefill
from .checks import check_attention
from .quantize_fp8 import FP8


def attend(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    *,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """`cached_attention` for GPU tensors; same arguments, same result. Never waits for the device.

    With `key_scale` and `value_scale`, [K] float32 each, the caches are float8 e4m3 and hold keys and values divided by
    the scale of their head.
    """
    num_tokens = batch.slot_mapping.shape[0]
    cache_dtype = query.dtype if key_scale is None else FP8
    check_attention(query, key_cache, value_cache, num_tokens, batch.block_size, sinks, cache_dtype)
    query = query if query.stride(-1) == 1 else query.contiguous()
    output = query.new_empty(num_tokens, query.shape[1], value_cache.shape[3])
    options = (scale, sliding_window, softcap, sinks)
    num_decodes = num_rows_with_few_tokens(batch, query.shape[1] // key_cache.shape[1])
    if num_decodes:
        attend_decode(
            query, key_cache, value_cache, batch, output, *options, key_scale=key_scale, value_scale=value_scale
        )
    if batch.seq_lens.shape[0] > num_decodes:
        attend_prefill(
            query, key_cache, value_cache, batch, output, *options, key_scale=key_scale, value_scale=value_scale
        )
    return output
