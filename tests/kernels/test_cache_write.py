from collections.abc import Iterator
from concurrent.futures import Executor

import numpy as np
import pytest
import torch
from attention_cases import among_layers
from triton_interpreter import interpreter

from penstock.kernels.attention_batch import AttentionBatch
from penstock.kernels.attention_reference import cache_write_reference
from penstock.kernels.cache_write import cache_write
from penstock.kernels.cache_write_cpu import as_pages, cache_rows, cache_write_cpu, clear_rows, pages_per_block
from penstock.kernels.dispatch import CacheWriteFunction


def difference(write: CacheWriteFunction) -> float:
    """Largest difference of the caches from the reference's; rows strided, slots shuffled, some skipped, D != Dv."""
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(3, 20, 48, generator=generator).transpose(0, 1)
    value = torch.randn(3, 20, 32, generator=generator).transpose(0, 1)
    slots = torch.randperm(5 * 16, generator=generator)[:20]
    slots[::4] = -1
    batch = AttentionBatch.build([[0, 1]], [20], [20], slots.numpy(), 16, "cpu")
    caches = [[among_layers(torch.zeros(5, 3, 16, dim)) for dim in (48, 32)] for _ in range(2)]
    write(key, value, *caches[0], batch)
    cache_write_reference(key, value, *caches[1], batch)
    assert caches[1][0].count_nonzero() == 15 * 3 * 48
    return max((mine - expected).abs().max().item() for mine, expected in zip(*caches, strict=True))


def triton_difference() -> float:
    """`difference` of the Triton kernel, in the interpreter's process."""
    from penstock.kernels.cache_write_triton import cache_write_triton

    return difference(cache_write_triton)


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter() as executor:
        yield executor


def test_triton_equals_the_reference(process: Executor) -> None:
    assert process.submit(triton_difference).result() == 0


def test_torch_equals_the_reference() -> None:
    assert difference(cache_write_cpu) == 0


@pytest.mark.parametrize(
    ("name", "shape"), [("key", (19, 3, 48)), ("value", (20, 2, 48)), ("value_cache", (5, 2, 16, 48))]
)
def test_tensors_that_do_not_fit_are_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    tensors = {"key": torch.zeros(20, 3, 48), "value": torch.zeros(20, 3, 48)}
    tensors |= {cache: torch.zeros(5, 3, 16, 48) for cache in ("key_cache", "value_cache")}
    batch = AttentionBatch.build([[0, 1]], [20], [20], np.arange(20), 16, "cpu")
    with pytest.raises(ValueError, match=name):
        cache_write(**tensors | {name: torch.zeros(shape)}, batch=batch)


def test_pages_are_the_heads_of_the_blocks() -> None:
    cache = among_layers(torch.randn(5, 3, 16, 48))
    pages = as_pages(cache)
    assert torch.equal(pages[2 * pages_per_block(cache) + 1], cache[2, 1].flatten())
    assert torch.equal(pages[-1], cache[-1, -1].flatten())


def test_cleared_slots_are_zero_and_the_others_are_kept() -> None:
    cache = among_layers(torch.full((4, 3, 16, 8), torch.nan))
    clear_rows(as_pages(cache), 8, cache_rows(torch.tensor([17, 63]), 3, 16, pages_per_block(cache)))
    cleared = torch.zeros(4, 16, dtype=torch.bool)
    cleared[1, 1] = cleared[3, 15] = True
    slots = cache.transpose(1, 2)  # [B, S, K, D]
    assert not slots[cleared].any()
    assert slots[~cleared].isnan().all()
