"""Triton kernel between the projection of queries, keys and values and attention: norm, rotation, cache write.

Legend: T packed tokens, H query heads, K kv heads, D head dim, B blocks, S block size.
"""

# Arguments of Triton kernels are device pointers and numbers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl

from .checks import check_dtype, check_shape
from .quantize_fp8 import FP8, MAX_FP8
from .quantize_fp8_triton import to_fp8

_TILE = 512  # elements of half heads that a program handles: four for each thread of four warps


@triton.jit
def rope_cache_write_kernel(
    qkv,
    cos,
    sin,
    q_norm_weight,
    k_norm_weight,
    query,
    key_cache,
    value_cache,
    slot_mapping,
    key_scale,
    value_scale,
    key_stride_b,
    key_stride_k,
    key_stride_s,
    value_stride_b,
    value_stride_k,
    value_stride_s,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    NORM: tl.constexpr,
    SCALED: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """Program (token, BLOCK_H of its H + 2K heads): writes query [T, H, D], key_cache and value_cache.

    Both halves of a head are in the same thread, which is all that a rotation needs.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    NUM_ALL: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    dim = tl.arange(0, BLOCK_HALF)
    inside_dim = dim < HALF
    inside = (head < NUM_ALL)[:, None] & inside_dim[None, :]
    is_query = head < NUM_HEADS
    is_key = (head >= NUM_HEADS) & (head < NUM_HEADS + NUM_KV_HEADS)
    source = qkv + (token * NUM_ALL + head)[:, None] * HEAD_DIM + dim[None, :]
    raw1 = tl.load(source, mask=inside, other=0.0)  # [BLOCK_H, BLOCK_HALF]
    raw2 = tl.load(source + HALF, mask=inside, other=0.0)
    x1, x2 = raw1.to(tl.float32), raw2.to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / HEAD_DIM + eps)[:, None]
        q1 = tl.load(q_norm_weight + dim, mask=inside_dim, other=0.0).to(tl.float32)
        q2 = tl.load(q_norm_weight + HALF + dim, mask=inside_dim, other=0.0).to(tl.float32)
        k1 = tl.load(k_norm_weight + dim, mask=inside_dim, other=0.0).to(tl.float32)
        k2 = tl.load(k_norm_weight + HALF + dim, mask=inside_dim, other=0.0).to(tl.float32)
        x1 = x1 * scale * tl.where(is_query[:, None], q1[None, :], k1[None, :])
        x2 = x2 * scale * tl.where(is_query[:, None], q2[None, :], k2[None, :])
    angle = token * HEAD_DIM + dim
    cos1 = tl.load(cos + angle, mask=inside_dim, other=0.0).to(tl.float32)[None, :]
    cos2 = tl.load(cos + angle + HALF, mask=inside_dim, other=0.0).to(tl.float32)[None, :]
    sin1 = tl.load(sin + angle, mask=inside_dim, other=0.0).to(tl.float32)[None, :]
    sin2 = tl.load(sin + angle + HALF, mask=inside_dim, other=0.0).to(tl.float32)[None, :]
    rotated1 = x1 * cos1 - x2 * sin1
    rotated2 = x2 * cos2 + x1 * sin2

    target = query + (token * NUM_HEADS + head)[:, None] * HEAD_DIM + dim[None, :]
    mask = is_query[:, None] & inside
    tl.store(target, rotated1, mask=mask)
    tl.store(target + HALF, rotated2, mask=mask)
    slot = tl.load(slot_mapping + token)
    if slot >= 0:
        block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
        kv_head = head - NUM_HEADS
        place = block * key_stride_b + kv_head * key_stride_k + offset * key_stride_s
        key_target = key_cache + place[:, None] + dim[None, :]
        key_mask = is_key[:, None] & inside
        if SCALED:
            scale_of_key = tl.load(key_scale + kv_head, mask=is_key, other=1.0)[:, None]
            tl.store(key_target, to_fp8(rotated1, scale_of_key, LARGEST), mask=key_mask)
            tl.store(key_target + HALF, to_fp8(rotated2, scale_of_key, LARGEST), mask=key_mask)
        else:
            tl.store(key_target, rotated1, mask=key_mask)
            tl.store(key_target + HALF, rotated2, mask=key_mask)
        kv_head -= NUM_KV_HEADS
        place = block * value_stride_b + kv_head * value_stride_k + offset * value_stride_s
        value_target = value_cache + place[:, None] + dim[None, :]
        value_mask = (kv_head >= 0)[:, None] & inside
        if SCALED:
            is_value = (kv_head >= 0) & (head < NUM_ALL)
            scale_of_value = tl.load(value_scale + kv_head, mask=is_value, other=1.0)[:, None]
            tl.store(value_target, to_fp8(raw1.to(tl.float32), scale_of_value, LARGEST), mask=value_mask)
            tl.store(value_target + HALF, to_fp8(raw2.to(tl.float32), scale_of_value, LARGEST), mask=value_mask)
        else:
            tl.store(value_target, raw1, mask=value_mask)
            tl.store(value_target + HALF, raw2, mask=value_mask)


def rope_cache_write_triton(
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
    *,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """`rope_cache_write` for GPU tensors. Moves `2 * T * (H + 2K) * D` elements, and the cosines and sines.

    With `key_scale` and `value_scale`, [K] float32 each, the caches are float8 e4m3 and get the keys and values divided
    by the scale of their head.
    """
    num_tokens, num_all, head_dim = qkv.shape
    check_shape("qkv", qkv, (slot_mapping.shape[0], num_heads + 2 * num_kv_heads, head_dim))
    check_shape("key_cache", key_cache, (None, num_kv_heads, None, head_dim))
    check_shape("value_cache", value_cache, tuple(key_cache.shape))
    for name, angles in (("cos", cos), ("sin", sin)):
        check_shape(name, angles, (num_tokens, head_dim))
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        check_dtype(name, cache, qkv.dtype if key_scale is None else FP8)
    query = qkv.new_empty(num_tokens, num_heads, head_dim)
    block_half, block_h = tile_sizes(head_dim)
    rope_cache_write_kernel[(num_tokens, triton.cdiv(num_all, block_h))](
        qkv.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        qkv if q_norm_weight is None else q_norm_weight,
        qkv if k_norm_weight is None else k_norm_weight,
        query,
        key_cache,
        value_cache,
        slot_mapping,
        qkv if key_scale is None else key_scale,
        qkv if value_scale is None else value_scale,
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=key_cache.shape[2],
        BLOCK_H=block_h,
        BLOCK_HALF=block_half,
        NORM=q_norm_weight is not None,
        SCALED=key_scale is not None,
        LARGEST=MAX_FP8,
    )
    return query


def tile_sizes(head_dim: int) -> tuple[int, int]:
    """Elements of half a head, a power of two, and heads of a program."""
    block_half = int(triton.next_power_of_2(head_dim // 2))
    return block_half, max(1, _TILE // block_half)
