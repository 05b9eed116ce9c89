"""Exact block ids and free order after each event."""

import pytest

from penstock.scheduler.block_pool import BlockPool
from penstock.scheduler.kv_arena import KVArena


def make_pool(num_blocks: int) -> BlockPool:
    """A pool alone in an arena of one slab."""
    return BlockPool(KVArena(num_blocks, slab_bytes=num_blocks), 1)


def test_blocks_are_taken_in_order_and_come_back_at_the_right_end() -> None:
    pool = make_pool(5)
    assert pool.take(3) == [0, 1, 2]
    assert pool.free_order() == [3, 4]
    pool.release(1, reusable=True)  # content may be wanted again: taken last
    pool.release(2, reusable=False)  # content is worthless: taken first
    assert pool.free_order() == [2, 3, 4, 1]
    assert (pool.num_available, pool.num_used) == (4, 1)
    assert pool.take(4) == [2, 3, 4, 1]
    assert pool.num_available == 0


def test_a_shared_block_is_free_only_when_all_have_released_it() -> None:
    pool = make_pool(3)
    (block_id,) = pool.take(1)
    pool.share([block_id])
    pool.release(block_id, reusable=True)
    assert not pool.is_free(block_id)
    pool.release(block_id, reusable=True)
    assert pool.is_free(block_id)
    assert pool.free_order() == [1, 2, 0]


def test_sharing_a_free_block_takes_it_out_of_the_free_queue() -> None:
    pool = make_pool(3)
    pool.take(2)
    pool.release(1, reusable=True)
    pool.share([1])
    assert pool.free_order() == [2]
    assert pool.ref_counts == [1, 1, 0]


def test_releasing_twice_is_an_error_of_ours() -> None:
    pool = make_pool(1)
    pool.take(1)
    pool.release(0, reusable=False)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(0, reusable=False)
