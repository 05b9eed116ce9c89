"""Where layers lie in the shared memory."""

import pytest
import torch

from penstock.kernels.cache_write_cpu import pages_per_block
from penstock.scheduler.layer_cache import LayerShape, bytes_per_block, view_caches

PLAIN = {index: LayerShape(2, 8, 8, torch.float32) for index in range(3)}
ODD = {0: LayerShape(3, 24, 16, torch.bfloat16), 1: LayerShape(1, 40, 8, torch.float32)}


def test_a_block_of_equal_layers_has_no_padding() -> None:
    assert bytes_per_block(PLAIN, 16) == 3 * 2 * (2 * 16 * 8 * 4)


@pytest.mark.parametrize("shapes", [PLAIN, ODD])
def test_no_two_caches_touch_and_every_block_stays_within_its_bytes(shapes: dict[int, LayerShape]) -> None:
    size = bytes_per_block(shapes, 16)
    memory = torch.zeros(5 * size + 7, dtype=torch.uint8)
    caches = [cache for layer in view_caches(memory, shapes, 16).values() for cache in (layer.key, layer.value)]
    for cache in caches:
        assert cache.stride(0) * cache.element_size() == size
        assert cache.stride(0) == pages_per_block(cache) * cache.shape[2] * cache.shape[3]
        assert cache[0].is_contiguous()
        assert not cache[2].any()  # no earlier cache has written here
        cache[2] = 1.0
        assert (cache[2] == 1.0).all()
    used = memory.nonzero().flatten()
    assert 2 * size <= used.min()
    assert used.max() < 3 * size


def test_memory_for_less_than_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="one block takes 6144 bytes, but the KV memory has 6143"):
        view_caches(torch.zeros(6143, dtype=torch.uint8), PLAIN, 16)
