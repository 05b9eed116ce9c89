"""Turns one step's rows into the tensors of one packed forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.attention import AttentionBatch

from .plan import GenerationBatch, ScheduledRow
from .request import Request
from .results import PromptSpan

# T packed tokens, R rows, n rows that sample, p prompt tokens whose log probabilities are wanted


@dataclass(frozen=True, slots=True)
class LastTokens:
    """What the model's last step sampled: on the device, whether or not the host knows it already."""

    token_ids: torch.Tensor  # [n] int64
    index_of: Mapping[Request, int]


@dataclass(frozen=True, slots=True)
class ForwardInputs:
    """Arguments of one packed forward pass."""

    input_ids: torch.Tensor  # [1, T] int64
    position_ids: torch.Tensor  # [1, T] int64
    attention: AttentionBatch
    logits_indices: torch.Tensor | None  # [n + p] int64: tokens whose logits are wanted; None: of no token
    sampling_requests: list[Request]
    """Requests of the rows that sample, in row order, once more for each draft: the first n logits are of their last
    tokens and drafts."""
    num_ahead: list[int]
    """Of those logits, how many drafts of the row they come after."""
    prompt_spans: list[PromptSpan]
    """The other p logits are of the tokens before these."""


def build_inputs(
    batch: GenerationBatch, block_size: int, device: torch.device, last: LastTokens | None = None
) -> ForwardInputs:
    """Pack the rows of `batch` one after the other.

    Rows of one token cost a few list appends each: they are nearly all of the rows nearly all of the time.

    Args:
        batch: the rows.
        block_size: tokens in a KV block.
        device: where the inputs go.
        last: has the tokens that the host does not know; None: it knows all.
    """
    rows = batch.rows
    num_decodes = _count_decodes(rows)
    known = [row.start < len(row.request.token_ids) for row in rows[:num_decodes]]
    tokens = [
        row.request.token_ids[row.start] if is_known else 0
        for row, is_known in zip(rows[:num_decodes], known, strict=True)
    ]
    positions = [row.start for row in rows[:num_decodes]]
    slots = [
        row.request.block_ids[row.start // block_size] * block_size + row.start % block_size
        for row in rows[:num_decodes]
    ]
    position_parts = [np.asarray(positions, dtype=np.int64)]
    slot_parts = [np.asarray(slots, dtype=np.int64)]
    for row in rows[num_decodes:]:
        tokens += [*row.request.token_ids[row.start : row.end], *row.drafts]
        row_positions = np.arange(row.start, row.end)
        position_parts.append(row_positions)
        slot_parts.append(_slots(row, row_positions, block_size))

    query_lens = [row.num_tokens for row in rows]
    row_ends = np.cumsum(query_lens)
    sampling = [index for index, row in enumerate(rows) for _ in range(row.num_sampled)]
    num_ahead = [number for row in rows for number in range(row.num_sampled)]
    num_drafts = [len(rows[index].drafts) for index in sampling]
    wanted = [row_ends[sampling] - 1 - np.array(num_drafts, np.int64) + np.array(num_ahead, np.int64)]
    prompt_spans = []
    for index, row in enumerate(rows):
        if row.request.needs_prompt_logprobs and (span := _prompt_span(row)) is not None:
            prompt_spans.append(span)
            wanted.append(np.arange(span.start, span.end) - 1 - row.end + row_ends[index])
    indices = np.concatenate(wanted)
    attention = AttentionBatch.build(
        cast("list[list[int]]", [row.request.block_ids for row in rows]),
        [row.end for row in rows],
        query_lens,
        np.concatenate(slot_parts),
        block_size,
        device,
    )
    input_ids = torch.tensor([tokens], dtype=torch.int64).to(device, non_blocking=True)
    if not all(known):
        assert last is not None
        places = [place for place, is_known in enumerate(known) if not is_known]
        sources = [last.index_of[rows[place].request] for place in places]
        routes = torch.tensor([places, sources]).to(device, non_blocking=True)  # [2, rows]
        input_ids[0].index_copy_(0, routes[0], last.token_ids.index_select(0, routes[1]))
    return ForwardInputs(
        input_ids=input_ids,
        position_ids=torch.from_numpy(np.concatenate(position_parts)).unsqueeze(0).to(device, non_blocking=True),
        attention=attention,
        logits_indices=torch.from_numpy(indices).to(device, non_blocking=True) if len(indices) else None,
        sampling_requests=[rows[index].request for index in sampling],
        num_ahead=num_ahead,
        prompt_spans=prompt_spans,
    )


def _count_decodes(rows: list[ScheduledRow]) -> int:
    """Number of leading rows of one token; the plan promises that no row of one token comes later."""
    for index, row in enumerate(rows):
        if row.num_tokens != 1:
            return index
    return len(rows)


def _prompt_span(row: ScheduledRow) -> PromptSpan | None:
    """The prompt tokens that the row's tokens predict and whose log probabilities are not known from before."""
    start = max(row.start, len(row.request.prompt_logprobs)) + 1
    end = min(row.end + 1, len(row.request.prompt_token_ids))
    return PromptSpan(row.request, start, end) if start < end else None


def _slots(row: ScheduledRow, positions: npt.NDArray[np.int64], block_size: int) -> npt.NDArray[np.int64]:
    """Cache slot of each position of one row: `block * block_size + offset`."""
    blocks = np.asarray(row.request.block_ids, dtype=np.int64)
    slots: npt.NDArray[np.int64] = blocks[positions // block_size] * block_size + positions % block_size
    return slots
