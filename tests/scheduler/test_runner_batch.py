"""Rows become tensors: exact tokens, positions, cache slots and rows of logits."""

import torch

from penstock.scheduler.batch import build_inputs
from penstock.scheduler.plan import GenerationBatch, ScheduledRow
from penstock.scheduler.request import BlockId, Request
from penstock.scheduler.sampling_params import SamplingParams

CPU = torch.device("cpu")


def row(token_ids: list[int], block_ids: list[int], start: int, num_tokens: int) -> ScheduledRow:
    request = Request(
        request_id="r",
        model="m",
        prompt_token_ids=token_ids,
        sampling=SamplingParams(max_tokens=8, seed=0),
        arrival_time=0.0,
        token_ids=list(token_ids),
        block_ids=[BlockId(block) for block in block_ids],
    )
    return ScheduledRow(request, start, num_tokens)


def test_mixed_rows() -> None:
    rows = [
        row([10, 11, 12, 13, 14], [7, 3], 4, 1),  # decodes: the first offset of its second block
        row([20, 21, 22], [0], 1, 1),  # one token in the middle of a prompt: does not sample
        row([30, 31, 32, 33, 34, 35], [5, 1], 2, 4),  # the rest of a prompt, over a border of blocks
        row([40, 41, 42, 43], [6], 0, 3),  # the first chunk of one
    ]
    inputs = build_inputs(GenerationBatch("m", rows), 4, CPU)
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
    inputs = build_inputs(GenerationBatch("m", rows), 4, CPU)
    assert inputs.input_ids.tolist() == [[3, 5]]
    assert inputs.attention.slot_mapping.tolist() == [10, 1]
    assert inputs.logits_indices is not None
    assert inputs.logits_indices.tolist() == [0, 1]


def test_nothing_samples() -> None:
    inputs = build_inputs(GenerationBatch("m", [row([1, 2, 3, 4], [0], 0, 3)]), 4, CPU)
    assert inputs.logits_indices is None
    assert inputs.sampling_requests == []


def test_spare_blocks_do_no_harm() -> None:
    """The scheduler may give a request blocks beyond its tokens."""
    inputs = build_inputs(GenerationBatch("m", [row([1, 2], [3, 9, 8], 0, 2)]), 4, CPU)
    assert inputs.attention.slot_mapping.tolist() == [12, 13]
