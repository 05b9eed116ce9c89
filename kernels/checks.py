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


def check_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    num_tokens: int,
    block_size: int,
    sinks: torch.Tensor | None,
) -> None:
    """Raise ValueError unless the tensors of one attention call fit each other and the step's `num_tokens`."""
    check_shape("query", query, (num_tokens, None, None))
    _, num_heads, head_dim = query.shape
    check_shape("key", key, (num_tokens, None, head_dim))
    num_kv_heads = key.shape[1]
    check_shape("value", value, (num_tokens, num_kv_heads, None))
    check_shape("key_cache", key_cache, (None, num_kv_heads, block_size, head_dim))
    check_shape("value_cache", value_cache, (key_cache.shape[0], num_kv_heads, block_size, value.shape[2]))
    if num_heads % num_kv_heads:
        raise ValueError(f"query has {num_heads} heads; they must be a multiple of the key's {num_kv_heads}")
    for name, tensor in (("key", key), ("value", value), ("key_cache", key_cache), ("value_cache", value_cache)):
        check_dtype(name, tensor, query.dtype)
    if sinks is not None:
        check_shape("sinks", sinks, (num_heads,))
