from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
import torch
from attention_cases import among_layers
from triton_interpreter import interpreter

from penstock.kernels.attention_reference import cache_write_reference
from penstock.kernels.cache_write import as_pages, cache_rows, clear_rows, pages_per_block, write_rows


def triton_difference() -> float:
    """Largest difference of the caches from the reference's; rows strided, slots shuffled, some skipped, D != Dv."""
    from penstock.kernels.cache_write_triton import cache_write_triton

    generator = torch.Generator().manual_seed(0)
    key = torch.randn(3, 20, 48, generator=generator).transpose(0, 1)
    value = torch.randn(3, 20, 32, generator=generator).transpose(0, 1)
    slots = torch.randperm(5 * 16, generator=generator)[:20]
    slots[::4] = -1
    caches = [[among_layers(torch.zeros(5, 3, 16, dim)) for dim in (48, 32)] for _ in range(2)]
    cache_write_triton(key, value, *caches[0], slots)
    cache_write_reference(key, value, *caches[1], slots)
    assert caches[1][0].count_nonzero() == 15 * 3 * 48
    return max((mine - expected).abs().max().item() for mine, expected in zip(*caches, strict=True))


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter() as executor:
        yield executor


def test_triton_equals_the_reference(process: Executor) -> None:
    assert process.submit(triton_difference).result() == 0


def test_rows_equal_the_reference() -> None:
    key = torch.randn(3, 20, 48).transpose(0, 1)
    slots = torch.randperm(5 * 16)[:20]
    cache, expected, other = (among_layers(torch.zeros(5, 3, 16, 48)) for _ in range(3))
    write_rows(key, as_pages(cache), cache_rows(slots, 3, 16, pages_per_block(cache)))
    cache_write_reference(key, key, expected, other, slots)
    assert torch.equal(cache, expected)


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
