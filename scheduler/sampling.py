"""Chooses the next token of every row of a batch, each by its own request's parameters.

The order is the specification: log probabilities are read off the unmodified logits; then logit_bias, repetition,
presence and frequency penalty, min_tokens; then what a grammar forbids; then the argmax at temperature 0, else
temperature, top_k, top_p, min_p and a draw that is a function of (seed, position). Where a row's logits are changed,
one kernel writes those of the whole batch anew; else the rows are drawn from what the model wrote.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.change_logits import LogitChanges, change_logits
from penstock.kernels.sampling import PARAMS, keyed_uniforms, sample_rows, top_logprobs

from .masks import PendingMasks
from .request import Request
from .results import PromptSpan, RowLogprobs, SampledRows
from .sampling_params import SamplingParams
from .staging import upload
from .token_counts import TokenCounts

_MIN_TEMPERATURE = 1e-30  # less is not a normal float32, and already the argmax


@dataclass(frozen=True, slots=True)
class Entries:
    """What is added to the logits of single tokens."""

    ids: npt.NDArray[np.int32]  # ascending
    values: npt.NDArray[np.float32]

    @classmethod
    def of(cls, added: Mapping[int, float]) -> "Entries":
        """Entries by token id."""
        ids = sorted(added)
        return cls(np.array(ids, np.int32), np.array([added[token_id] for token_id in ids], np.float32))


class SamplerState:
    """What is added to the logits of one request, worked out once.

    Attributes:
        young: while it has fewer tokens than `min_tokens`, so that its ends are forbidden.
        grown: later.
    """

    def __init__(self, params: SamplingParams, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        # Ids outside the vocabulary have no logit to change.
        bias = {token_id: value for token_id, value in params.logit_bias.items() if 0 <= token_id < vocab_size}
        ends = {token_id for token_id in (*eos_token_ids, *params.stop_token_ids) if 0 <= token_id < vocab_size}
        self.grown = Entries.of(bias)
        self.young = Entries.of(bias | dict.fromkeys(ends, -math.inf))


def changes_logits(request: Request) -> bool:
    """Whether bias, penalties, min_tokens or a grammar change the next token's logits."""
    params = request.sampling
    return bool(params.logit_bias) or params.has_penalties or request.matcher is not None or _is_young(request)


def wants_logits(request: Request) -> bool:
    """Whether the next token takes more than `sample_rows` with its `row_params`."""
    return changes_logits(request) or request.sampling.logprobs is not None


def _is_young(request: Request) -> bool:
    return request.num_output_tokens < request.sampling.min_tokens


def row_params(requests: Sequence[Request], vocab_size: int, num_ahead: Sequence[int] | int = 0) -> torch.Tensor:
    """Parameters [R, 5] float64 of `sample_rows`, on the host.

    Each row is for the next token of its request, if the request had `num_ahead` more tokens.
    """
    params = [request.sampling for request in requests]
    values = np.array(
        [(each.temperature, each.top_k or vocab_size, each.top_p, each.min_p, 0.0) for each in params], np.float64
    ).reshape(len(params), len(PARAMS))
    temperature = values[:, 0]
    temperature[(temperature > 0.0) & (temperature < _MIN_TEMPERATURE)] = _MIN_TEMPERATURE
    seeds = np.array([each.seed for each in params], np.int64)
    positions = np.array([request.num_tokens for request in requests], np.int64)
    values[:, 4] = keyed_uniforms(seeds, positions + np.asarray(num_ahead, np.int64))
    return torch.from_numpy(values)


class Sampler:
    """Chooses tokens for one model."""

    def __init__(self, vocab_size: int, eos_token_ids: frozenset[int], device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._device = device
        self._counts = TokenCounts(vocab_size, device)
        self._no_bits = torch.empty(0, -(-vocab_size // 32), dtype=torch.int32, device=device)

    def sample(
        self,
        logits: torch.Tensor,
        requests: Sequence[Request],
        masks: PendingMasks | None = None,
        num_ahead: Sequence[int] | int = 0,
    ) -> SampledRows:
        """Choose one token for each row.

        Args:
            logits: [R, V] in any float dtype, left as they are. NaN counts as impossible; a row of nothing else gives
                token 0.
            requests: R >= 1 requests, whose last token each row follows; it may still be on the device.
            masks: what the grammars of the requests allow, if any has one.
            num_ahead: [R], how many drafts come between the request's tokens and the one to sample.

        Returns:
            R tokens in the order of the rows, with log probabilities for the requests that asked, on the device.
        """
        logits = logits[:, : self._vocab_size]
        params = row_params(requests, self._vocab_size, num_ahead).to(self._device, non_blocking=True)
        values = logits
        if any(map(changes_logits, requests)):
            values = change_logits(logits, self._changes(requests, masks))
        token_ids = sample_rows(values, params)
        self._counts.add(requests, token_ids)
        asking = [row for row, request in enumerate(requests) if request.sampling.logprobs is not None]
        if not asking:
            return SampledRows(token_ids, asking, None)
        index = torch.tensor(asking).to(self._device, non_blocking=True)
        numbers = [requests[row].sampling.logprobs or 0 for row in asking]
        return SampledRows(token_ids, asking, _logprobs(logits[index], token_ids[index], numbers))

    def score_prompts(self, logits: torch.Tensor, spans: Sequence[PromptSpan]) -> RowLogprobs | None:
        """Find the log probabilities of prompt tokens.

        Args:
            logits: [p, V] in any float dtype, of the tokens before those of the spans.
            spans: p tokens together.

        Returns:
            A row for each token, on the device; None if there are no spans.
        """
        if not spans:
            return None
        token_ids = [token_id for span in spans for token_id in span.request.prompt_token_ids[span.start : span.end]]
        numbers = [span.request.sampling.prompt_logprobs or 0 for span in spans for _ in range(span.start, span.end)]
        wanted = torch.tensor(token_ids).to(self._device, non_blocking=True)
        return _logprobs(logits[:, : self._vocab_size], wanted, numbers)

    def _changes(self, requests: Sequence[Request], masks: PendingMasks | None) -> LogitChanges:
        """What the requests change in their rows."""
        entries = [self._entries(request) for request in requests]
        entry_starts = np.zeros(len(requests) + 1, np.int32)
        np.cumsum([len(each.ids) for each in entries], out=entry_starts[1:])
        params = [request.sampling for request in requests]
        factors = [(each.repetition_penalty, each.presence_penalty, each.frequency_penalty) for each in params]
        masked = np.full(len(requests), -1, np.int32)
        bits = self._no_bits
        if masks is not None:
            allowed = masks.result()
            masked[allowed.rows] = np.arange(len(allowed.rows))
            bits = allowed.bits
        arrays = [
            entry_starts,
            np.concatenate([each.ids for each in entries]),
            np.concatenate([each.values for each in entries]),
            self._counts.rows_of(requests),
            np.array(factors, np.float32),
            masked,
        ]
        starts, ids, added, count_rows, penalties, mask_rows = upload(arrays, self._device)
        return LogitChanges(starts, ids, added, count_rows, penalties, self._counts.table, mask_rows, bits)

    def _entries(self, request: Request) -> Entries:
        if request.sampler_state is None:
            request.sampler_state = SamplerState(request.sampling, self._vocab_size, self._eos_token_ids)
        # A grammar may allow nothing but an end; its mask decides whether one can be held back.
        is_held_back = _is_young(request) and request.matcher is None
        return request.sampler_state.young if is_held_back else request.sampler_state.grown


def _logprobs(logits: torch.Tensor, token_ids: torch.Tensor, numbers: list[int]) -> RowLogprobs:
    """Log probabilities of one token a row of `logits` [rows, V] and of the `numbers` [rows] likeliest ones."""
    return RowLogprobs(numbers, *top_logprobs(logits, token_ids, min(max(numbers), logits.shape[1])))
