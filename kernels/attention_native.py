"""Paged attention on the CPU in native code, which reads keys and values where they lie in the cache.

The kernel is in attention_native.c. Each query's result is bitwise the same whatever other rows are in the step,
however its prompt was cut into chunks, and however many threads there are.

Legend: T packed tokens, H query heads, K kv heads, D head dim (Dv of the values), B blocks, S block size.
"""

import ctypes
from functools import cache
from typing import NamedTuple

import torch

from .attention_batch import AttentionBatch
from .checks import check_attention
from .native import library

_DTYPES = (torch.bfloat16, torch.float32)
_MAX_HEAD_DIM = 256
_MAX_GROUP = 96


class Call(ctypes.Structure):
    """`Attention` of attention_call.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key_cache", "value_cache", "output", "sinks")),
        *((name, ctypes.c_void_p) for name in ("block_table", "seq_lens", "query_start_loc")),
        *((name, ctypes.c_int64) for name in ("query_token_stride", "query_head_stride")),
        *((name, ctypes.c_int64) for name in ("key_block_stride", "value_block_stride", "block_table_stride")),
        *((name, ctypes.c_int32) for name in ("num_rows", "num_heads", "num_kv_heads", "head_dim", "value_head_dim")),
        *((name, ctypes.c_int32) for name in ("block_size", "window", "is_float32")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
    )


class LayerKind(NamedTuple):
    """Everything about a layer that its call has in common with those of other layers in a step."""

    query_shape: torch.Size
    query_stride: tuple[int, ...]
    key_shape: torch.Size
    key_block_stride: int
    value_head_dim: int
    value_block_stride: int
    scale: float
    sliding_window: int | None
    softcap: float | None


def can_attend(dtype: torch.dtype, num_heads: int, key_block: tuple[int, ...], value_head_dim: int) -> bool:
    """Whether the native kernel computes this attention on this machine; `key_block` is [K, S, D]."""
    num_kv_heads, block_size, head_dim = key_block
    return (
        dtype in _DTYPES
        and block_size % 16 == 0
        and all(dim % 16 == 0 and dim <= _MAX_HEAD_DIM for dim in (head_dim, value_head_dim))
        and num_heads <= _MAX_GROUP * num_kv_heads
        and library() is not None
    )


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
    """`cached_attention` where `can_attend`; same arguments, same result."""
    if query.stride(2) != 1:
        query = query.contiguous()
    kind = LayerKind(
        query.shape,
        query.stride(),
        key_cache.shape,
        key_cache.stride(0),
        value_cache.shape[3],
        value_cache.stride(0),
        scale,
        sliding_window,
        softcap,
    )
    call: Call | None = batch.plans.get(kind)
    if call is None:
        check_attention(query, key_cache, value_cache, batch.slot_mapping.shape[0], batch.block_size, sinks)
        call = batch.plans[kind] = prepare(kind, query.dtype, batch)
    output = query.new_empty(query.shape[0], query.shape[1], value_cache.shape[3])
    if sinks is not None:
        sinks = sinks.float().contiguous()
    call.query, call.output = query.data_ptr(), output.data_ptr()
    call.key_cache, call.value_cache = key_cache.data_ptr(), value_cache.data_ptr()
    call.sinks = None if sinks is None else sinks.data_ptr()
    if _function()(ctypes.byref(call)):
        raise MemoryError("no memory for the attention of a step")
    return output


def prepare(kind: LayerKind, dtype: torch.dtype, batch: AttentionBatch) -> Call:
    """The call, but for the pointers of a layer."""
    _, num_kv_heads, block_size, head_dim = kind.key_shape
    return Call(
        block_table=batch.block_table.data_ptr(),
        seq_lens=batch.seq_lens.data_ptr(),
        query_start_loc=batch.query_start_loc.data_ptr(),
        query_token_stride=kind.query_stride[0],
        query_head_stride=kind.query_stride[1],
        key_block_stride=kind.key_block_stride,
        value_block_stride=kind.value_block_stride,
        block_table_stride=batch.block_table.stride(0),
        num_rows=batch.seq_lens.shape[0],
        num_heads=kind.query_shape[1],
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        value_head_dim=kind.value_head_dim,
        block_size=block_size,
        window=kind.sliding_window or 0,
        is_float32=dtype == torch.float32,
        scale=kind.scale,
        softcap=kind.softcap or 0.0,
    )


@cache
def _function() -> "ctypes._NamedFuncPointer":
    loaded = library()
    assert loaded is not None
    loaded.penstock_attention.argtypes = [ctypes.c_void_p]
    return loaded.penstock_attention
