"""Turns one step's rows into the tensors of one packed forward pass."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.attention import AttentionBatch

from .plan import GenerationBatch, ScheduledRow
from .request import Request

# T packed tokens, R rows, n rows that sample


@dataclass(frozen=True, slots=True)
class ForwardInputs:
    """Arguments of one packed forward pass."""

    input_ids: torch.Tensor  # [1, T] int64
    position_ids: torch.Tensor  # [1, T] int64
    attention: AttentionBatch
    logits_indices: torch.Tensor | None  # [n] int64: last tokens of the rows that sample; None: no row does
    sampling_requests: list[Request]
    """Requests of the rows that sample, in row order."""


def build_inputs(batch: GenerationBatch, block_size: int, device: torch.device) -> ForwardInputs:
    """Pack the rows of `batch` one after the other.

    Rows of one token cost a few list appends each: they are nearly all of the rows nearly all of the time.
    """
    rows = batch.rows
    num_decodes = _count_decodes(rows)
    tokens = [row.request.token_ids[row.start] for row in rows[:num_decodes]]
    positions = [row.start for row in rows[:num_decodes]]
    slots = [
        row.request.block_ids[row.start // block_size] * block_size + row.start % block_size
        for row in rows[:num_decodes]
    ]
    position_parts = [np.asarray(positions, dtype=np.int64)]
    slot_parts = [np.asarray(slots, dtype=np.int64)]
    for row in rows[num_decodes:]:
        tokens += row.request.token_ids[row.start : row.end]
        row_positions = np.arange(row.start, row.end)
        position_parts.append(row_positions)
        slot_parts.append(_slots(row, row_positions, block_size))

    query_lens = [row.num_tokens for row in rows]
    sampling = [index for index, row in enumerate(rows) if row.samples]
    logits_indices = None
    if sampling:
        last_tokens = np.cumsum(query_lens)[sampling] - 1
        logits_indices = torch.from_numpy(last_tokens).to(device, non_blocking=True)
    attention = AttentionBatch.build(
        cast("list[list[int]]", [row.request.block_ids for row in rows]),
        [row.end for row in rows],
        query_lens,
        np.concatenate(slot_parts),
        block_size,
        device,
    )
    return ForwardInputs(
        input_ids=torch.tensor([tokens], dtype=torch.int64).to(device, non_blocking=True),
        position_ids=torch.from_numpy(np.concatenate(position_parts)).unsqueeze(0).to(device, non_blocking=True),
        attention=attention,
        logits_indices=logits_indices,
        sampling_requests=[rows[index].request for index in sampling],
    )


def _count_decodes(rows: list[ScheduledRow]) -> int:
    """Number of leading rows of one token; the plan promises that no row of one token comes later."""
    for index, row in enumerate(rows):
        if row.num_tokens != 1:
            return index
    return len(rows)


def _slots(row: ScheduledRow, positions: npt.NDArray[np.int64], block_size: int) -> npt.NDArray[np.int64]:
    """Cache slot of each position of one row: `block * block_size + offset`."""
    blocks = np.asarray(row.request.block_ids, dtype=np.int64)
    slots: npt.NDArray[np.int64] = blocks[positions // block_size] * block_size + positions % block_size
    return slots
