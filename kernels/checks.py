"""Checks of what callers pass to public operations; each error names the tensor, what it is and what it has to be."""

import torch


def check_shape(name: str, tensor: torch.Tensor, expected: tuple[int | None, ...]) -> None:
    """Raise ValueError unless `tensor` has shape `expected`, in which None stands for any size."""
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(
        want is not None and size != want for size, want in zip(shape, expected, strict=True)
    ):
        wanted = ", ".join("any" if want is None else str(want) for want in expected)
        raise ValueError(f"{name} has shape {list(shape)}; it must be [{wanted}]")


def check_dtype(name: str, tensor: torch.Tensor, expected: torch.dtype) -> None:
    """Raise ValueError unless the elements of `tensor` are `expected`."""
    if tensor.dtype != expected:
        raise ValueError(f"{name} is {tensor.dtype}; it must be {expected}")


def check_cache_write(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    num_tokens: int,
) -> None:
    """Raise ValueError unless a step's `num_tokens` keys and values fit each other and their caches."""
    check_shape("key", key, (num_tokens, None, None))
    _, num_kv_heads, head_dim = key.shape
    check_shape("value", value, (num_tokens, num_kv_heads, None))
    num_blocks, _, block_size, _ = key_cache.shape
    check_shape("key_cache", key_cache, (None, num_kv_heads, None, head_dim))
    check_shape("value_cache", value_cache, (num_blocks, num_kv_heads, block_size, value.shape[2]))
    for name, tensor in (("value", value), ("key_cache", key_cache), ("value_cache", value_cache)):
        check_dtype(name, tensor, key.dtype)


def check_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    num_tokens: int,
    block_size: int,
    sinks: torch.Tensor | None,
    cache_dtype: torch.dtype | None = None,
) -> None:
    """Raise ValueError unless queries and caches fit each other and the step's `num_tokens`.

    `cache_dtype` None: the caches must be of the query's.
    """
    check_shape("query", query, (num_tokens, None, None))
    _, num_heads, head_dim = query.shape
    check_shape("key_cache", key_cache, (None, None, block_size, head_dim))
    num_blocks, num_kv_heads, _, _ = key_cache.shape
    check_shape("value_cache", value_cache, (num_blocks, num_kv_heads, block_size, None))
    if num_heads % num_kv_heads:
        raise ValueError(f"query has {num_heads} heads; they must be a multiple of the cache's {num_kv_heads}")
    check_dtype("key_cache", key_cache, cache_dtype or query.dtype)
    check_dtype("value_cache", value_cache, cache_dtype or query.dtype)
    if sinks is not None:
        check_shape("sinks", sinks, (num_heads,))
