"""Norm, rotation and cache write in bfloat16 on the CPU, in C.

Legend: T packed tokens, H query heads, K kv heads, D head dim, B blocks, S block size.
"""

from collections.abc import Callable
from ctypes import c_float, c_int64, c_void_p
from functools import cache

import torch

from .native import function, is_native


def fits(
    qkv: torch.Tensor, cos: torch.Tensor, key_cache: torch.Tensor, q_norm_weight: torch.Tensor | None = None
) -> bool:
    """Whether `rope_cache_write_native` computes this: all in bfloat16, each half of a head whole vectors."""
    norm_dtype = torch.bfloat16 if q_norm_weight is None else q_norm_weight.dtype
    return is_native(qkv) and cos.dtype == key_cache.dtype == norm_dtype == torch.bfloat16 and qkv.shape[2] % 32 == 0


def rope_cache_write_native(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> torch.Tensor:
    """`rope_cache_write` where it `fits`; rounds once, at the end."""
    num_tokens, _, head_dim = qkv.shape
    query = qkv.new_empty(num_tokens, num_heads, head_dim)
    _rope_cache_write()(
        qkv.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        key_cache.data_ptr(),
        key_cache.stride(0),
        value_cache.data_ptr(),
        value_cache.stride(0),
        key_cache.shape[2],
        slot_mapping.data_ptr(),
        num_heads,
        num_kv_heads,
        head_dim,
        None if q_norm_weight is None else q_norm_weight.data_ptr(),
        None if k_norm_weight is None else k_norm_weight.data_ptr(),
        eps,
        num_tokens,
        query.data_ptr(),
    )
    return query


@cache
def _rope_cache_write() -> Callable[..., None]:
    caches = (c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p)
    heads = (c_int64, c_int64, c_int64, c_void_p, c_void_p, c_float)
    return function("penstock_rope_cache_write", c_void_p, c_void_p, c_void_p, *caches, *heads, c_int64, c_void_p)
