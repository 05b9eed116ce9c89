import itertools

import numpy as np
import pytest
import torch
from attention_cases import (
    BLOCK_SIZE,
    CASES,
    DECODE,
    MIXED,
    Case,
    error,
    error_in_used_memory,
    limit,
    make_inputs,
    run,
    write,
)

from penstock.kernels.attention import AttentionBatch, paged_attention
from penstock.kernels.attention_cpu import attend
from penstock.kernels.attention_cpu_plan import LayerKind, make_plan


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_reference(case: Case) -> None:
    assert error(attend, case) <= limit(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_decodes_of_random_lengths(dtype: torch.dtype) -> None:
    lengths = np.random.default_rng(1).integers(1, 600, 40).tolist()
    case = Case(tuple((length - 1, 1) for length in lengths), dtype=dtype)
    assert error(attend, case) <= limit(case)


def test_long_prompts_are_cut_and_equal_the_reference() -> None:
    case = Case(((700, 1), (0, 500), (300, 200)), window=150)
    assert error(attend, case) <= limit(case)


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    rows = tuple((index * 7, 1) for index in range(20))
    together, _ = run(attend, Case(rows))
    inputs = make_inputs(Case(rows))
    for row, (context, _) in enumerate(rows):
        host = inputs.batch.host
        batch = AttentionBatch.build(
            [host.block_table[row].tolist()], [context + 1], [1], host.slot_mapping[row : row + 1], BLOCK_SIZE, "cpu"
        )
        states = (inputs.query[row : row + 1], inputs.key[row : row + 1], inputs.value[row : row + 1])
        alone = paged_attention(*states, inputs.key_cache, inputs.value_cache, batch, scale=64**-0.5)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6)


def test_the_memory_of_other_requests_is_never_read() -> None:
    case = Case(DECODE)
    expected, _ = run(attend, case)
    inputs = make_inputs(case)
    own = {int(block) for block in inputs.batch.host.block_table.ravel()}
    foreign = [block for block in range(len(inputs.key_cache)) if block not in own]
    assert foreign
    inputs.key_cache[foreign] = torch.nan
    inputs.value_cache[foreign] = torch.nan
    write(inputs)
    output = attend(*inputs.attended, 64**-0.5)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("left", [torch.nan, torch.inf])
@pytest.mark.parametrize("window", [None, 12])
def test_what_earlier_owners_left_in_blocks_changes_nothing(left: float, window: int | None) -> None:
    assert error_in_used_memory(attend, left, window) <= 1e-5


@pytest.mark.parametrize(
    ("seq_lens", "query_lens", "cleared"),
    [
        ([5, 31, 48], [1, 1, 1], []),  # the blocks were begun earlier or are full
        ([32, 48], [32, 20], []),
        ([33, 18], [1, 2], [*range(33, 48), *range(48 + 18, 48 + 32)]),
        ([20], [10], [*range(20, 32)]),
        ([20], [3], []),
    ],
)
def test_only_the_end_of_a_block_that_the_step_begins_is_cleared(
    seq_lens: list[int], query_lens: list[int], cleared: list[int]
) -> None:
    first_blocks = np.cumsum([0, *(-(-length // BLOCK_SIZE) for length in seq_lens)]).tolist()
    tables = [list(range(*ends)) for ends in itertools.pairwise(first_blocks)]
    rows = zip(first_blocks, seq_lens, query_lens, strict=False)
    slots = np.concatenate([first * BLOCK_SIZE + np.arange(end - count, end) for first, end, count in rows])
    batch = AttentionBatch.build(tables, seq_lens, query_lens, slots, BLOCK_SIZE, "cpu")
    plan = make_plan(batch, LayerKind(1, 1, 8, 8, torch.float32, None, 1, 1))
    assert (plan.cleared_keys is None) == (not cleared)
    if plan.cleared_keys is not None:
        assert plan.cleared_keys.tolist() == cleared


def test_layers_of_one_kind_share_a_plan() -> None:
    inputs = make_inputs(Case(MIXED))
    for window in (None, 16, None, 16):
        attend(*inputs.attended, 0.125, window)
    assert len(inputs.batch.plans) == 2


def _buckets(seq_lens: list[int], query_lens: list[int], window: int | None = None) -> list[tuple[int, int, int]]:
    tables = [list(range(-(-length // BLOCK_SIZE))) for length in seq_lens]
    slots = np.arange(sum(query_lens), dtype=np.int64)
    batch = AttentionBatch.build(tables, seq_lens, query_lens, slots, BLOCK_SIZE, "cpu")
    plan = make_plan(batch, LayerKind(9, 3, 64, 64, torch.float32, window, 3, 3))
    return [(bucket.num_units, bucket.unit_len, bucket.keys_t.shape[2]) for bucket in plan.buckets]


def test_equal_rows_make_one_bucket_of_whole_blocks() -> None:
    assert _buckets([100] * 32, [1] * 32) == [(32, 1, 7 * BLOCK_SIZE)]


def test_rows_of_like_length_share_a_bucket() -> None:
    assert _buckets([100, 30, 128, 64], [1] * 4) == [(4, 1, 128)]


def test_equal_rows_that_are_too_large_together_are_cut() -> None:
    assert _buckets([2048] * 5, [1] * 5) == [(2, 1, 2048), (2, 1, 2048), (1, 1, 2048)]


def test_one_long_row_does_not_pad_the_others() -> None:
    assert _buckets([128] * 15 + [2048] + [128] * 16, [1] * 32) == [(1, 1, 2048), (31, 1, 128)]


def test_a_tile_of_a_prompt_reads_no_later_keys() -> None:
    assert _buckets([160], [160]) == [(1, 64, 128), (1, 64, 64), (1, 32, 160)]


def test_a_window_reads_only_the_blocks_it_touches() -> None:
    assert _buckets([2048, 2048], [1, 1], window=32) == [(2, 1, 32)]


def test_a_batch_without_tokens() -> None:
    batch = AttentionBatch.build([], [], [], np.empty(0, dtype=np.int64), BLOCK_SIZE, "cpu")
    empty, cache = torch.empty(0, 3, 8), torch.zeros(1, 3, BLOCK_SIZE, 8)
    assert paged_attention(empty, empty, empty, cache, cache.clone(), batch, scale=1.0).shape == (0, 3, 8)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("query", (5, 9, 64)), ("query", (1, 8, 64)), ("key", (1, 3, 32)), ("value", (1, 4, 64)), ("sinks", (3,))],
)
def test_tensors_that_do_not_fit_are_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    inputs = make_inputs(Case(((20, 1),)))
    setattr(inputs, name, torch.zeros(shape))
    arguments = (inputs.query, inputs.key, inputs.value, inputs.key_cache, inputs.value_cache, inputs.batch)
    with pytest.raises(ValueError, match=name):
        paged_attention(*arguments, scale=1.0, sinks=inputs.sinks)


def test_a_cache_of_another_dtype_is_refused() -> None:
    inputs = make_inputs(Case(((20, 1),)))
    arguments = (inputs.query, inputs.key, inputs.value, inputs.key_cache.half(), inputs.value_cache, inputs.batch)
    with pytest.raises(ValueError, match=r"key_cache is torch.float16; it must be torch.float32"):
        paged_attention(*arguments, scale=1.0)


@pytest.mark.parametrize(
    ("tables", "seq_lens", "query_lens", "num_slots", "message"),
    [
        ([[0]], [3], [4], 4, "row 0 has 4 query tokens; they must be among its 3 keys"),
        ([[0], [1]], [3, 17], [1, 1], 2, "row 1 has 1 blocks of 16 for 17 keys; it must have at least 2"),
        ([[0]], [3], [3], 2, "slot_mapping has 2 slots; it must have one for each of 3 tokens"),
    ],
)
def test_rows_that_cannot_be_are_refused(
    tables: list[list[int]], seq_lens: list[int], query_lens: list[int], num_slots: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionBatch.build(tables, seq_lens, query_lens, np.zeros(num_slots, np.int64), BLOCK_SIZE, "cpu")
