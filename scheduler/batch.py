"""Turns one step's rows into the tensors of one packed forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.attention import AttentionBatch
from penstock.kernels.attention_batch import HostBatch

from .block_tables import BlockTables
from .plan import GenerationBatch, ScheduledRow
from .request import Request
from .results import PromptSpan
from .staging import upload

# T packed tokens, R rows, n rows that sample, p prompt tokens whose log probabilities are wanted


@dataclass(frozen=True, slots=True)
class LastTokens:
    """What the model's last step sampled: on the device, whether or not the host knows it already."""

    token_ids: torch.Tensor  # [n] int64
    index_of: Mapping[Request, int]


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The rows of a step, one after the other, as arrays on the host."""

    tokens: npt.NDArray[np.int64]  # [T]; 0 where only the device knows the token
    sources: npt.NDArray[np.int64]  # [T]: index of the token in what the last step sampled; -1: the host knows it
    positions: npt.NDArray[np.int64]  # [T]
    slots: npt.NDArray[np.int64]  # [T]: block * S + offset of the token's key and value
    seats: npt.NDArray[np.int64]  # [R]: row of the block tables
    seq_lens: npt.NDArray[np.int32]  # [R]
    query_start_loc: npt.NDArray[np.int32]  # [R + 1]
    num_decodes: int
    """Leading rows of one token."""


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


def pack_rows(batch: GenerationBatch, tables: BlockTables, block_size: int, last: LastTokens | None) -> PackedRows:
    """Lay the rows of `batch` one after the other.

    Rows of one token cost a few list appends each: they are nearly all of the rows nearly all of the time.

    Args:
        batch: the rows.
        tables: get to know the rows' blocks.
        block_size: S, tokens in a KV block.
        last: has the tokens that the host does not know; None: it knows all.
    """
    rows = batch.rows
    num_decodes = _count_decodes(rows)
    tokens, sources = [], []
    for row in rows[:num_decodes]:
        known = row.request.token_ids
        if row.start < len(known):
            tokens.append(known[row.start])
            sources.append(-1)
        else:
            assert last is not None
            tokens.append(0)
            sources.append(last.index_of[row.request])
    for row in rows[num_decodes:]:
        tokens += [*row.request.token_ids[row.start : row.end], *row.drafts]
    seats = tables.seats_of([row.request for row in rows])
    starts = np.array([row.start for row in rows], np.int64)
    query_lens = np.array([row.num_tokens for row in rows], np.int64)
    query_start_loc = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(query_lens, out=query_start_loc[1:])
    positions, token_seats = starts, seats
    if num_decodes < len(rows):
        positions = np.repeat(starts - query_start_loc[:-1], query_lens) + np.arange(len(tokens))
        token_seats = np.repeat(seats, query_lens)
    blocks = tables.host[token_seats, positions // block_size].astype(np.int64)
    return PackedRows(
        tokens=np.array(tokens, np.int64),
        sources=np.array(sources + [-1] * (len(tokens) - num_decodes), np.int64),
        positions=positions,
        slots=blocks * block_size + positions % block_size,
        seats=seats,
        seq_lens=(starts + query_lens).astype(np.int32),
        query_start_loc=query_start_loc,
        num_decodes=num_decodes,
    )


def build_inputs(
    batch: GenerationBatch,
    tables: BlockTables,
    block_size: int,
    device: torch.device,
    last: LastTokens | None = None,
) -> ForwardInputs:
    """The arguments of the forward pass for any batch, see `pack_rows`."""
    packed = pack_rows(batch, tables, block_size, last)
    rows = batch.rows
    row_ends = packed.query_start_loc[1:].astype(np.int64)
    sampling = [index for index, row in enumerate(rows[: packed.num_decodes]) if row.samples]
    wanted = [row_ends[sampling] - 1]
    num_ahead = [0] * len(sampling)
    for index in range(packed.num_decodes, len(rows)):
        ahead = range(rows[index].num_sampled)
        sampling += [index] * len(ahead)
        num_ahead += ahead
        wanted.append(row_ends[index] - len(ahead) + np.array(ahead, np.int64))
    prompt_spans = []
    for row, end in zip(rows, row_ends.tolist(), strict=True):
        if row.request.needs_prompt_logprobs and (span := _prompt_span(row)) is not None:
            prompt_spans.append(span)
            wanted.append(np.arange(span.start, span.end) - 1 - row.end + end)
    indices = np.concatenate(wanted)
    tokens, positions, slots, seats, seq_lens, query_start_loc, logits_indices, sources = upload(
        [
            packed.tokens,
            packed.positions,
            packed.slots,
            packed.seats,
            packed.seq_lens,
            packed.query_start_loc,
            indices,
            packed.sources,
        ],
        device,
    )
    if last is not None and packed.sources.max() >= 0:
        tokens = take_tokens(tokens, sources, last.token_ids)
    max_blocks = -(-int(packed.seq_lens.max()) // block_size)
    # A GPU's attention plans nothing on the host.
    if device.type == "cpu":
        host_table = tables.host[packed.seats, :max_blocks]
        table = torch.from_numpy(host_table)
    else:
        host_table = tables.host[:0]
        table = tables.table[:, :max_blocks].index_select(0, seats)
    return ForwardInputs(
        input_ids=tokens.unsqueeze(0),
        position_ids=positions.unsqueeze(0),
        attention=AttentionBatch(
            block_table=table,
            seq_lens=seq_lens,
            query_start_loc=query_start_loc,
            slot_mapping=slots,
            num_decodes=packed.num_decodes,
            max_query_len=max((row.num_tokens for row in rows[packed.num_decodes :]), default=1),
            block_size=block_size,
            host=HostBatch(host_table, packed.seq_lens, packed.query_start_loc, packed.slots),
        ),
        logits_indices=logits_indices if len(indices) else None,
        sampling_requests=[rows[index].request for index in sampling],
        num_ahead=num_ahead,
        prompt_spans=prompt_spans,
    )


def take_tokens(tokens: torch.Tensor, sources: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """`tokens` [T], those with a source replaced by that entry of `last`."""
    return torch.where(sources >= 0, last.index_select(0, sources.clamp(min=0)), tokens)


def only_decodes(rows: list[ScheduledRow]) -> bool:
    """Whether every row has one token, samples from it, and wants nothing else."""
    return all(row.num_tokens == 1 and row.samples and not row.request.needs_prompt_logprobs for row in rows)


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
