"""Slabs between models: who gets which, who loses which, and what each could have."""

from penstock.scheduler.block_pool import BlockPool
from penstock.scheduler.kv_arena import KVArena
from penstock.scheduler.request import BlockId


def pools(num_bytes: int, slab_bytes: int, *block_bytes: int) -> list[BlockPool]:
    arena = KVArena(num_bytes, slab_bytes)
    return [BlockPool(arena, size) for size in block_bytes]


def test_slabs_suit_the_first_model_and_are_not_too_many() -> None:
    assert KVArena.for_blocks(3200, 10).slab_bytes == 100
    assert KVArena.for_blocks(3200, 50).slab_bytes == 200
    assert KVArena.for_blocks(100, 50).num_slabs == 1


def test_models_take_slabs_as_they_need_them() -> None:
    small, large = pools(40, 10, 2, 5)
    assert (small.num_available, large.num_available) == (20, 8)
    assert small.take(1) == [0]
    assert (small.num_available, large.num_available) == (19, 6)
    assert large.take(3) == [2, 3, 4]
    assert small.take(6) == [1, 2, 3, 4, 15, 16]
    assert (small.num_available, large.num_available) == (3, 1)


def test_a_block_may_lie_across_slabs_of_one_model() -> None:
    (pool,) = pools(30, 10, 4)
    assert pool.take(2) == [0, 1]
    assert pool.free_order() == []  # bytes 8 to 11 are partly in a slab that nobody has asked for yet
    assert pool.take(3) == [2, 3, 4]
    assert pool.num_available == 7 - 5


def test_a_block_across_slabs_of_two_models_is_nobodys() -> None:
    one, two = pools(20, 10, 4, 4)
    assert one.take(2) == [0, 1]
    assert two.take(2) == [3, 4]
    assert (one.num_available, two.num_available) == (0, 0)


def test_of_idle_content_the_older_is_lost_whosever_it_is() -> None:
    forgotten: list[tuple[str, int]] = []
    arena = KVArena(20, 10)
    one = BlockPool(arena, 5, lambda block_id: forgotten.append(("one", block_id)))
    two = BlockPool(arena, 5, lambda block_id: forgotten.append(("two", block_id)))
    one.take(2)
    two.take(2)
    forgotten.clear()
    one.release(BlockId(0), reusable=True)
    one.release(BlockId(1), reusable=True)
    two.release(BlockId(2), reusable=True)
    two.release(BlockId(3), reusable=True)
    assert two.take(1) == [0]  # the other's, idle for longer than its own
    assert sorted(forgotten) == [("one", 0), ("one", 1), ("two", 0)]
    forgotten.clear()
    assert one.num_available == 2  # the slab of blocks 2 and 3
    assert one.take(1) == [2]
    assert sorted(forgotten) == [("one", 2), ("two", 2), ("two", 3)]


def test_a_slab_with_one_block_in_use_stays() -> None:
    one, two = pools(10, 10, 5, 5)
    one.take(2)
    one.release(BlockId(0), reusable=True)
    assert not two.can_take(1)
    one.release(BlockId(1), reusable=True)
    assert two.can_take(2)


def test_a_closed_pool_leaves_everything_to_the_others() -> None:
    one, two = pools(20, 10, 5, 5)
    one.take(3)
    for block_id in (0, 1, 2):
        one.release(BlockId(block_id), reusable=True)
    one.close()
    assert two.take(4) == [0, 1, 2, 3]
    assert one.free_order() == []
