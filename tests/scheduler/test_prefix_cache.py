"""What is found by content, and what is forgotten."""

from penstock.scheduler.messages import Submit
from penstock.scheduler.prefix_cache import PrefixCache, extend_block_hashes
from penstock.scheduler.request import BlockId, Request
from penstock.scheduler.sampling_params import SamplingParams


def hashes_of(
    tokens: list[int], *, salt: str = "", block_size: int = 4, principal: str = "", is_shared: bool = False
) -> list[bytes]:
    params = SamplingParams(max_tokens=1, seed=0)
    request = Request.from_submit(Submit("r", "m", tokens, params, 0.0, cache_salt=salt, principal=principal))
    extend_block_hashes(request, block_size, len(tokens) // block_size, is_shared=is_shared)
    return request.block_hashes


def test_hashes_are_of_the_whole_prefix_and_the_salt() -> None:
    one, two = hashes_of([1, 2, 3, 4, 5, 6, 7, 8]), hashes_of([9, 2, 3, 4, 5, 6, 7, 8])
    assert one == hashes_of([1, 2, 3, 4, 5, 6, 7, 8, 99])
    assert not set(one) & set(two)
    assert not set(one) & set(hashes_of([1, 2, 3, 4, 5, 6, 7, 8], salt="x"))
    assert len(set(one)) == 2


def test_principals_share_nothing_unless_they_are_meant_to() -> None:
    tokens = [*range(8)]
    alice = hashes_of(tokens, principal="alice")
    assert alice == hashes_of(tokens, principal="alice")
    for other in (
        hashes_of(tokens, principal="bob"),
        hashes_of(tokens),
        hashes_of(tokens, salt="alice"),
        hashes_of(tokens, principal="al", salt="ice"),
    ):
        assert not set(alice) & set(other)
    shared = hashes_of(tokens, principal="alice", is_shared=True)
    assert shared == hashes_of(tokens, principal="bob", is_shared=True)
    assert not set(shared) & set(hashes_of(tokens, principal="bob", salt="x", is_shared=True))


def test_hashes_are_extended_not_made_again() -> None:
    params = SamplingParams(max_tokens=1, seed=0)
    request = Request.from_submit(Submit("r", "m", [*range(8)], params, 0.0))
    extend_block_hashes(request, 4, 1)
    first = request.block_hashes[0]
    request.token_ids += [*range(8, 12)]
    extend_block_hashes(request, 4, 3)
    assert request.block_hashes == hashes_of([*range(12)])
    assert request.block_hashes[0] is first


def test_the_longest_known_run_from_the_start_is_found() -> None:
    cache = PrefixCache()
    hashes = hashes_of([*range(12)])
    for block_id, index in ((7, 0), (5, 2)):
        cache.remember(BlockId(block_id), hashes[index])
    assert cache.longest_prefix(hashes) == [7]  # the second block is unknown, so the third is of no use
    cache.remember(BlockId(6), hashes[1])
    assert cache.longest_prefix(hashes) == [7, 6, 5]


def test_the_first_block_of_a_content_stays() -> None:
    cache = PrefixCache()
    (content,) = hashes_of([*range(4)])
    cache.remember(BlockId(1), content)
    cache.remember(BlockId(2), content)
    assert cache.longest_prefix([content]) == [1]
    assert BlockId(2) not in cache
    cache.forget(BlockId(2))
    assert len(cache) == 1
    cache.forget(BlockId(1))
    assert (len(cache), cache.longest_prefix([content])) == (0, [])
