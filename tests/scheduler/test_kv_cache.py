"""What requests reuse, take and give back, block by block."""

from penstock.scheduler.kv_arena import KVArena
from penstock.scheduler.kv_cache import KVCacheManager
from penstock.scheduler.messages import Submit
from penstock.scheduler.request import Request
from penstock.scheduler.sampling_params import SamplingParams


def make_kv(num_blocks: int, *, enable_prefix_caching: bool = True) -> KVCacheManager:
    """An arena of one slab for one model, with blocks of 4 tokens."""
    arena = KVArena(num_blocks, slab_bytes=num_blocks)
    return KVCacheManager(arena, 1, 4, enable_prefix_caching=enable_prefix_caching)


def make_request(tokens: list[int], *, request_id: str = "r", salt: str = "") -> Request:
    params = SamplingParams(max_tokens=8, seed=0)
    return Request.from_submit(Submit(request_id, "m", tokens, params, 0.0, cache_salt=salt))


def run_through(kv: KVCacheManager, request: Request) -> None:
    """Admit a request and compute all its tokens."""
    cached = kv.find_cached(request)
    assert kv.can_admit(request, cached)
    kv.admit(request, cached)
    kv.remember(request, request.num_tokens)
    request.num_computed_tokens = request.num_tokens


def test_a_second_request_shares_the_full_blocks_of_the_first() -> None:
    kv = make_kv(8)
    first, second = make_request([*range(10)]), make_request([*range(8), 50, 51])
    run_through(kv, first)
    assert first.block_ids == [0, 1, 2]
    run_through(kv, second)
    assert second.block_ids == [0, 1, 3]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 8)
    assert kv.pool.ref_counts == [2, 2, 1, 1, 0, 0, 0, 0]
    assert (kv.prefix_cache.num_queried_tokens, kv.prefix_cache.num_hit_tokens) == (20, 8)


def test_at_least_one_token_is_left_to_compute() -> None:
    kv = make_kv(8)
    run_through(kv, make_request([*range(8)]))
    again = make_request([*range(8)])
    assert kv.find_cached(again) == [0]


def test_equal_blocks_behind_different_prefixes_are_not_shared() -> None:
    kv = make_kv(8)
    run_through(kv, make_request([1, 1, 1, 1, 5, 6, 7, 8, 9]))
    assert kv.find_cached(make_request([2, 2, 2, 2, 5, 6, 7, 8, 9])) == []


def test_another_salt_finds_nothing() -> None:
    kv = make_kv(8)
    run_through(kv, make_request([*range(9)], salt="alice" * 30))
    assert kv.find_cached(make_request([*range(9)], salt="alice" * 30 + "!")) == []
    assert kv.find_cached(make_request([*range(9)], salt="alice" * 30)) == [0, 1]


def test_released_blocks_stay_known_until_they_are_taken() -> None:
    kv = make_kv(4)
    first = make_request([*range(10)])
    run_through(kv, first)
    kv.release(first)
    # Block 2 was never full, so it is taken first; then the untouched one; then the deeper block of the prefix.
    assert kv.pool.free_order() == [2, 3, 1, 0]
    run_through(kv, make_request([70, 71, 72, 73, 74, 75, 76, 77, 78]))  # takes 2, 3, 1
    assert kv.find_cached(make_request([*range(10)])) == [0]


def test_cached_free_blocks_are_not_counted_twice_at_admission() -> None:
    kv = make_kv(3)
    first = make_request([*range(8)])
    run_through(kv, first)
    kv.release(first)
    longer = make_request([*range(13)])  # needs 4 blocks of 3, 2 of them cached and free
    cached = kv.find_cached(longer)
    assert cached == [0, 1]
    assert not kv.can_admit(longer, cached)


def test_switched_off_nothing_is_found() -> None:
    kv = make_kv(8, enable_prefix_caching=False)
    run_through(kv, make_request([*range(9)]))
    assert kv.find_cached(make_request([*range(9)])) == []
    assert len(kv.prefix_cache) == 0


def test_a_running_request_grows_block_by_block() -> None:
    kv = make_kv(2)
    request = make_request([1, 2, 3, 4])
    run_through(kv, request)
    request.token_ids.append(5)
    assert kv.can_grow(request)
    kv.grow(request)
    assert request.block_ids == [0, 1]
    request.token_ids += [6, 7, 8]
    kv.grow(request)
    assert request.block_ids == [0, 1]
    request.token_ids.append(9)
    assert not kv.can_grow(request)
