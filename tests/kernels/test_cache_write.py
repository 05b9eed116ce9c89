from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
import torch
from triton_interpreter import interpreter

from penstock.kernels.attention_reference import cache_write_reference
from penstock.kernels.cache_write import cache_write, empty_kv_cache


def difference(triton: bool) -> float:
    """Largest difference of the caches from the reference's; rows strided, slots shuffled, some skipped, D != Dv."""
    if triton:
        from penstock.kernels.cache_write_triton import cache_write_triton as write
    else:
        write = cache_write
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(3, 20, 48, generator=generator).transpose(0, 1)
    value = torch.randn(3, 20, 32, generator=generator).transpose(0, 1)
    slots = torch.randperm(5 * 16, generator=generator)[:20]
    slots[::4] = -1
    caches = [[empty_kv_cache(5, 3, 16, dim, torch.float32, "cpu") for dim in (48, 32)] for _ in range(2)]
    write(key, value, *caches[0], slots)
    cache_write_reference(key, value, *caches[1], slots)
    assert caches[1][0].count_nonzero() == 15 * 3 * 48
    return max((mine - expected).abs().max().item() for mine, expected in zip(*caches, strict=True))


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter() as executor:
        yield executor


def test_torch_equals_the_reference() -> None:
    assert difference(triton=False) == 0


def test_triton_equals_the_reference(process: Executor) -> None:
    assert process.submit(difference, True).result() == 0


def test_an_empty_cache_is_zero() -> None:
    cache = empty_kv_cache(4, 2, 16, 8, torch.bfloat16, "cpu")
    assert cache.shape == (4, 2, 16, 8)
    assert not cache.any()


def test_caches_of_another_shape_are_refused() -> None:
    key = torch.zeros(2, 3, 8)
    cache = empty_kv_cache(4, 3, 16, 8, torch.float32, "cpu")
    other = empty_kv_cache(4, 2, 16, 8, torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"value_cache has shape \[4, 2, 16, 8\]; it must be \[4, 3, 16, 8\]"):
        cache_write(key, key, cache, other, torch.zeros(2, dtype=torch.int64))
