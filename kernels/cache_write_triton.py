"""Triton kernel that stores a step's keys and values in the paged cache.

Legend: T packed tokens, K kv heads, D head dim (Dv of the values), B blocks, S block size.
"""

# Arguments of Triton kernels are device pointers and numbers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl

from .attention_batch import AttentionBatch
from .checks import check_cache_write


@triton.jit
def _store_token(
    states,
    cache,
    token,
    slot,
    states_stride_t,
    states_stride_k,
    cache_stride_b,
    cache_stride_k,
    cache_stride_s,
    BLOCK_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Copy one token's [K, D] into its slot; WIDTH is a power of two of at least K * D."""
    index = tl.arange(0, WIDTH)
    head, dim = index // HEAD_DIM, index % HEAD_DIM
    inside = index < NUM_KV_HEADS * HEAD_DIM
    state = tl.load(states + token * states_stride_t + head * states_stride_k + dim, mask=inside)
    place = (slot // BLOCK_SIZE) * cache_stride_b + head * cache_stride_k + (slot % BLOCK_SIZE) * cache_stride_s + dim
    tl.store(cache + place, state, mask=inside)


@triton.jit
def cache_write_kernel(
    key,
    value,
    key_cache,
    value_cache,
    slot_mapping,
    key_stride_t,
    key_stride_k,
    value_stride_t,
    value_stride_k,
    key_cache_stride_b,
    key_cache_stride_k,
    key_cache_stride_s,
    value_cache_stride_b,
    value_cache_stride_k,
    value_cache_stride_s,
    BLOCK_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_HEAD_DIM: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
):
    """One program a token; a negative slot stores nothing."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    if slot >= 0:
        _store_token(
            key,
            key_cache,
            token,
            slot,
            key_stride_t,
            key_stride_k,
            key_cache_stride_b,
            key_cache_stride_k,
            key_cache_stride_s,
            BLOCK_SIZE,
            NUM_KV_HEADS,
            HEAD_DIM,
            KEY_WIDTH,
        )
        _store_token(
            value,
            value_cache,
            token,
            slot,
            value_stride_t,
            value_stride_k,
            value_cache_stride_b,
            value_cache_stride_k,
            value_cache_stride_s,
            BLOCK_SIZE,
            NUM_KV_HEADS,
            VALUE_HEAD_DIM,
            VALUE_WIDTH,
        )


def cache_write_triton(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    batch: AttentionBatch,
) -> None:
    """`cache_write` for GPU tensors; same arguments. Never waits for the device."""
    slot_mapping = batch.slot_mapping
    check_cache_write(key, value, key_cache, value_cache, slot_mapping.shape[0])
    key, value = (states if states.stride(-1) == 1 else states.contiguous() for states in (key, value))
    num_tokens, num_kv_heads, head_dim = key.shape
    value_head_dim = value.shape[2]
    constants: dict[str, Any] = {
        "BLOCK_SIZE": key_cache.shape[2],
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "VALUE_HEAD_DIM": value_head_dim,
        "KEY_WIDTH": triton.next_power_of_2(num_kv_heads * head_dim),
        "VALUE_WIDTH": triton.next_power_of_2(num_kv_heads * value_head_dim),
    }
    cache_write_kernel[(num_tokens,)](
        key,
        value,
        key_cache,
        value_cache,
        slot_mapping,
        *key.stride()[:2],
        *value.stride()[:2],
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        **constants,
    )
