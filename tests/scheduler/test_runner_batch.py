"""Rows become tensors: exact tokens, positions, cache slots and rows of logits."""

import itertools

import torch

from penstock.scheduler.batch import ForwardInputs, LastTokens, build_inputs
from penstock.scheduler.block_tables import BlockTables
from penstock.scheduler.plan import GenerationBatch, ScheduledRow
from penstock.scheduler.request import BlockId, Request
from penstock.scheduler.sampling_params import SamplingParams

CPU = torch.device("cpu")


_ids = itertools.count()


def row(token_ids: list[int], block_ids: list[int], start: int, num_tokens: int) -> ScheduledRow:
    request = Request(
        request_id=str(next(_ids)),
        model="m",
        prompt_token_ids=token_ids,
        sampling=SamplingParams(max_tokens=8, seed=0),
        arrival_time=0.0,
        token_ids=list(token_ids),
        block_ids=[BlockId(block) for block in block_ids],
    )
    return ScheduledRow(request, start, num_tokens)


def inputs_of(*rows: ScheduledRow, last: LastTokens | None = None) -> ForwardInputs:
    return build_inputs(GenerationBatch("m", list(rows)), BlockTables(8, 8, CPU), 4, CPU, last)


def test_mixed_rows() -> None:
    rows = [
        row([10, 11, 12, 13, 14], [7, 3], 4, 1),  # decodes: the first offset of its second block
        row([20, 21, 22], [0], 1, 1),  # one token in the middle of a prompt: does not sample
        row([30, 31, 32, 33, 34, 35], [5, 1], 2, 4),  # the rest of a prompt, over a border of blocks
        row([40, 41, 42, 43], [6], 0, 3),  # the first chunk of one
    ]
    inputs = inputs_of(*rows)
    assert inputs.attention.block_table.tolist() == [[7, 3], [0, 0], [5, 1], [6, 0]]
    assert inputs.attention.max_query_len == 4
    assert inputs.input_ids.tolist() == [[14, 21, 32, 33, 34, 35, 40, 41, 42]]
    assert inputs.position_ids.tolist() == [[4, 1, 2, 3, 4, 5, 0, 1, 2]]
    assert inputs.attention.slot_mapping.tolist() == [12, 1, 22, 23, 4, 5, 24, 25, 26]
    assert inputs.attention.seq_lens.tolist() == [5, 2, 6, 3]
    assert inputs.attention.query_start_loc.tolist() == [0, 1, 2, 6, 9]
    assert inputs.attention.num_decodes == 2
    assert inputs.logits_indices is not None
    assert inputs.logits_indices.tolist() == [0, 5]
    assert inputs.sampling_requests == [rows[0].request, rows[2].request]


def test_decodes_alone() -> None:
    rows = [row([1, 2, 3], [2], 2, 1), row([4, 5], [0], 1, 1)]
    inputs = inputs_of(*rows)
    assert inputs.input_ids.tolist() == [[3, 5]]
    assert inputs.attention.slot_mapping.tolist() == [10, 1]
    assert inputs.logits_indices is not None
    assert inputs.logits_indices.tolist() == [0, 1]


def test_nothing_samples() -> None:
    inputs = inputs_of(row([1, 2, 3, 4], [0], 0, 3))
    assert inputs.logits_indices is None
    assert inputs.sampling_requests == []


def test_spare_blocks_do_no_harm() -> None:
    """The scheduler may give a request blocks beyond its tokens."""
    inputs = inputs_of(row([1, 2], [3, 9, 8], 0, 2))
    assert inputs.attention.slot_mapping.tolist() == [12, 13]


def test_tokens_that_only_the_device_knows_are_taken_from_there() -> None:
    known, pending, prompt = row([1, 2], [2], 1, 1), row([4, 5, 6], [0], 2, 1), row([7, 8, 9], [1], 0, 3)
    pending.request.num_pending_tokens = 1
    next_row = ScheduledRow(pending.request, 3, 1)
    last = LastTokens(torch.tensor([70, 80]), {pending.request: 1})
    inputs = inputs_of(known, next_row, prompt, last=last)
    assert inputs.input_ids.tolist() == [[2, 80, 7, 8, 9]]
    assert inputs.attention.slot_mapping.tolist() == [9, 3, 4, 5, 6]
    assert next_row.samples
