from dataclasses import replace

import numpy as np
import pytest
import torch
from attention_cases import BLOCK_SIZE, CASES, MIXED, Case, error, error_in_used_memory, limit, make_inputs, run, write

from penstock.kernels import native
from penstock.kernels.attention import AttentionBatch, cached_attention
from penstock.kernels.attention_cpu import attend as attend_torch
from penstock.kernels.attention_native import attend, can_attend
from penstock.kernels.dispatch import attention_for

pytestmark = pytest.mark.skipif(native.library() is None, reason="no gcc, or a processor without avx512_bf16")

LONG = Case(((900, 1), (3000, 1), (0, 500), (2000, 130)))
"""Longer than a chunk of the kernel, so that sums are joined; few rows, so that the longest are split over threads."""
WIDE = Case(((70, 1), (0, 40)), heads=(24, 2, 128, 256))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [*CASES, LONG, replace(LONG, window=700, sinks=True), WIDE], ids=str)
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    case = replace(case, dtype=dtype)
    assert error(attend, case) <= limit(case)


@pytest.mark.parametrize("left", [torch.nan, torch.inf])
@pytest.mark.parametrize("window", [None, 12])
def test_what_earlier_owners_left_in_blocks_changes_nothing(left: float, window: int | None) -> None:
    assert error_in_used_memory(attend, left, window) <= 1e-5


def test_a_padding_row_gives_zeros() -> None:
    inputs = make_inputs(Case(((40, 1), (16, 1), (600, 1))))
    inputs.batch.seq_lens[1] = 0
    write(inputs)
    for sinks in (None, torch.zeros(9)):
        output = attend(*inputs.attended, 0.125, None, None, sinks)
        assert not output[1].any()
        assert output[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"sliding_window": 50}, {"sliding_window": 1500, "softcap": 3.0, "sinks": torch.ones(9)}], ids=str
)
def test_a_token_gets_the_same_bits_in_any_batch_and_any_chunk(dtype: torch.dtype, options: dict[str, object]) -> None:
    case = Case(((1300, 1), (40, 1), (0, 90), (1000, 100)), dtype=dtype)
    inputs = make_inputs(case)
    write(inputs)
    together = cached_attention(*inputs.attended, scale=0.125, **options)  # type: ignore[arg-type]
    host = inputs.batch.host
    for row, (context, new) in enumerate(case.rows):
        first = int(host.query_start_loc[row])
        for start in range(new):
            # Alone, and each token but the first ones in a step of its own.
            count = 37 if start == 0 else 1
            tokens = slice(first + start, first + min(start + count, new))
            count = tokens.stop - tokens.start
            table = [host.block_table[row].tolist()]
            length = context + start + count
            batch = AttentionBatch.build(
                table, [length], [count], np.full(count, -1, dtype=np.int64), BLOCK_SIZE, "cpu"
            )
            alone = cached_attention(
                inputs.query[tokens],
                inputs.key_cache,
                inputs.value_cache,
                batch,
                scale=0.125,
                **options,  # type: ignore[arg-type]
            )
            assert torch.equal(alone, together[tokens])


def test_the_number_of_threads_changes_no_bit() -> None:
    case = replace(LONG, rows=LONG.rows[1:2], dtype=torch.bfloat16)
    num_threads = torch.get_num_threads()
    outputs = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            outputs.append(run(attend, case)[0])
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(*outputs)


def test_blocks_of_another_size() -> None:
    inputs = make_inputs(Case(MIXED))
    write(inputs)
    expected = attend(*inputs.attended, 0.125)
    host = inputs.batch.host
    lengths = [context + new for context, new in MIXED]
    num_blocks = [-(-length // 48) for length in lengths]
    key_cache, value_cache = (torch.zeros(sum(num_blocks), 3, 48, 64) for _ in "kv")
    tables: list[list[int]] = []
    for row, length in enumerate(lengths):
        tables.append([sum(num_blocks[:row]) + index for index in range(num_blocks[row])])
        for source, target in ((inputs.key_cache, key_cache), (inputs.value_cache, value_cache)):
            states = source[host.block_table[row]].transpose(1, 2).flatten(0, 1)[:length]  # [L, K, D]
            for position in range(length):
                target[tables[row][position // 48], :, position % 48] = states[position]
    batch = AttentionBatch.build(tables, lengths, [new for _, new in MIXED], host.slot_mapping, 48, "cpu")
    assert torch.equal(attend(inputs.query, key_cache, value_cache, batch, 0.125), expected)


@pytest.mark.parametrize(
    ("case", "native_code"),
    [
        (Case(((4, 1),)), True),
        (Case(((4, 1),), dtype=torch.bfloat16, heads=(8, 1, 256, 128)), True),
        (Case(((4, 1),), dtype=torch.float16), False),
        (Case(((4, 1),), heads=(2, 1, 24, 32)), False),
        (Case(((4, 1),), heads=(97, 1, 16, 16)), False),
    ],
    ids=str,
)
def test_what_it_does_not_compute_is_left_to_torch(case: Case, native_code: bool) -> None:
    inputs = make_inputs(case)
    chosen = attention_for(inputs.query, inputs.key_cache, inputs.value_cache)
    assert chosen is (attend if native_code else attend_torch)
    assert not can_attend(torch.float32, 4, (2, 8, 64), 64)
