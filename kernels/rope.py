"""What happens to a layer's queries, keys and values between their projection and attention, as one operation.

Queries and keys of some models are normed by head, both are rotated to their positions, and keys and values are stored
in the paged cache. Legend: T packed tokens, H query heads, K kv heads, D head dim, B blocks, S block size.
"""

import torch

from .cache_write_cpu import as_pages, cache_rows, pages_per_block, write_rows
from .quantize_fp8 import quantize_heads_fp8
from .rmsnorm import rms_norm_reference
from .rope_native import fits, rope_cache_write_native


def rope_cache_write(
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
    """Norm and rotate queries and keys, and store keys and values.

    Rotary positions (arXiv 2104.09864) with the halves of D as the two coordinates: `x * cos + (-x2, x1) * sin`.

    Args:
        qkv: [T, H + 2K, D], contiguous: query heads, key heads, value heads.
        cos: [T, D], contiguous, of any float dtype: cosines of each token's angles.
        sin: [T, D], likewise: sines.
        key_cache: [B, K, S, D], written in place; each [K, S, D] is contiguous, and on a CPU the distance between two
            blocks is a multiple of S * D.
        value_cache: [B, K, S, D], likewise.
        slot_mapping: [T] int64, `block * S + offset`; negative: the token is not stored. No slot twice.
        num_heads: H.
        num_kv_heads: K.
        q_norm_weight: [D], of the RMS norm of each query head before the rotation; None: none.
        k_norm_weight: [D], of each key head; given if and only if `q_norm_weight` is.
        eps: added to the mean square of those norms.
        key_scale: [K] float32; the caches are then float8 e4m3 and get keys divided by the scale of their head.
        value_scale: [K] float32, likewise; given if and only if `key_scale` is.

    Returns:
        The queries, [T, H, D] of the dtype of `qkv`, contiguous.
    """
    arguments = (qkv, cos, sin, key_cache, value_cache, slot_mapping, num_heads, num_kv_heads)
    norms = (q_norm_weight, k_norm_weight, eps)
    if qkv.is_cpu and fits(qkv, cos, key_cache, q_norm_weight):  # which caches of float8 do not
        return rope_cache_write_native(*arguments, *norms)
    if qkv.is_cpu:
        return rope_cache_write_reference(*arguments, *norms, key_scale=key_scale, value_scale=value_scale)
    from .rope_triton import rope_cache_write_triton

    return rope_cache_write_triton(*arguments, *norms, key_scale=key_scale, value_scale=value_scale)


def rope_cache_write_reference(
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
    """`rope_cache_write` in plain torch; rounds between its parts, as transformers does."""
    num_rotated = num_heads + num_kv_heads
    query, key, value = qkv[:, :num_heads], qkv[:, num_heads:num_rotated], qkv[:, num_rotated:]
    if q_norm_weight is not None and k_norm_weight is not None:
        query = rms_norm_reference(query, q_norm_weight, eps)
        key = rms_norm_reference(key, k_norm_weight, eps)
    rotated = _rotate(torch.cat((query, key), dim=1), cos, sin)  # [T, H + K, D]
    key = rotated[:, num_heads:]
    if key_scale is not None and value_scale is not None:
        key, value = quantize_heads_fp8(key, key_scale), quantize_heads_fp8(value, value_scale)
        # As bytes, because torch copies no rows of float8 on a CPU.
        key, value, key_cache, value_cache = (one.view(torch.uint8) for one in (key, value, key_cache, value_cache))
    _write(key, key_cache, slot_mapping)
    _write(value, value_cache, slot_mapping)
    return rotated[:, :num_heads].contiguous()


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions of `heads` [T, heads, D]."""
    half = heads.shape[-1] // 2
    # `(-x2, x1) * sin` is `(x2, x1) * (-sin, sin)`: what has one head is negated, not what has all.
    signed_sin = torch.cat((-sin[:, :half], sin[:, half:]), dim=1).to(heads.dtype).unsqueeze(1)  # [T, 1, D]
    return torch.addcmul(heads * cos.to(heads.dtype).unsqueeze(1), heads.roll(half, dims=-1), signed_sin)


def _write(states: torch.Tensor, cache: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    """Store `states` [T, K, D] in `cache` [B, K, S, D]."""
    stored = slot_mapping >= 0  # [T]
    if not stored.all():
        states, slot_mapping = states[stored], slot_mapping[stored]
    rows = cache_rows(slot_mapping, cache.shape[1], cache.shape[2], pages_per_block(cache))  # [T * K]
    write_rows(states.to(cache.dtype), as_pages(cache), rows)
