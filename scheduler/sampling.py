"""Chooses the next token of every row of a batch, each by its own request's parameters.

The order is the specification: log probabilities are read off the unmodified logits; then logit_bias, repetition,
presence and frequency penalty, min_tokens; then what a grammar forbids; then the argmax at temperature 0, else
temperature, top_k, top_p, min_p and a draw that is a function of (seed, position). Only rows whose logits are changed
are copied; the others are drawn from what the model wrote.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.bitmask import apply_bitmask
from penstock.kernels.penalties import add_bias, forbid, penalize
from penstock.kernels.sampling import PARAMS, keyed_uniforms, sample_rows, top_logprobs

from .masks import PendingMasks
from .request import Request
from .results import PromptSpan, RowLogprobs, SampledRows
from .sampling_params import SamplingParams
from .staging import upload

_MIN_TEMPERATURE = 1e-30  # less is not a normal float32, and already the argmax


class SamplerState:
    """What one request's tokens change in its logits, kept up to date token by token."""

    def __init__(self, params: SamplingParams, prompt_len: int, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        # Ids outside the vocabulary have no logit to change.
        bias = {token_id: value for token_id, value in params.logit_bias.items() if 0 <= token_id < vocab_size}
        self.bias_ids = np.fromiter(bias.keys(), np.int64)
        self.bias_values = np.fromiter(bias.values(), np.float32)
        ends = {token_id for token_id in (*eos_token_ids, *params.stop_token_ids) if 0 <= token_id < vocab_size}
        self.end_ids = np.array(sorted(ends), np.int64)
        self.penalized = params.has_penalties
        self._prompt_len = prompt_len
        self._vocab_size = vocab_size
        self._forget()

    def _forget(self) -> None:
        self._num_tokens = 0
        self._place: dict[int, int] = {}  # token id to its index in the two arrays
        self._seen_ids = np.empty(256, np.int64)
        self._output_counts = np.empty(256, np.float32)

    def follow(self, token_ids: Sequence[int]) -> None:
        """Count the tokens that came since the last call; all of them if the sequence got shorter."""
        if len(token_ids) < self._num_tokens:
            self._forget()
        for index in range(self._num_tokens, len(token_ids)):
            token_id = token_ids[index]
            place = self._place.get(token_id)
            if place is None and 0 <= token_id < self._vocab_size:
                place = len(self._place)
                self._place[token_id] = place
                if place == len(self._seen_ids):
                    self._seen_ids = np.concatenate((self._seen_ids, self._seen_ids))
                    self._output_counts = np.concatenate((self._output_counts, self._output_counts))
                self._seen_ids[place], self._output_counts[place] = token_id, 0
            if place is not None and index >= self._prompt_len:
                self._output_counts[place] += 1
        self._num_tokens = len(token_ids)

    @property
    def seen_ids(self) -> npt.NDArray[np.int64]:
        """Distinct tokens of prompt and output, in order of appearance."""
        return self._seen_ids[: len(self._place)]

    @property
    def output_counts(self) -> npt.NDArray[np.float32]:
        """How often each of `seen_ids` is in the output."""
        return self._output_counts[: len(self._place)]


def changes_logits(request: Request) -> bool:
    """Whether bias, penalties or min_tokens change the next token's logits."""
    return bool(request.sampling.logit_bias) or _is_young(request) or request.sampling.has_penalties


def wants_logits(request: Request) -> bool:
    """Whether the next token takes more than `sample_rows` with its `row_params`."""
    return changes_logits(request) or request.matcher is not None or request.sampling.logprobs is not None


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
    """Chooses tokens for one model. It keeps nothing between calls; a request's counts live on the request."""

    def __init__(self, vocab_size: int, eos_token_ids: frozenset[int], device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._device = device

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
        changed = [
            row for row, request in enumerate(requests) if changes_logits(request) or request.matcher is not None
        ]
        if not changed:
            token_ids = sample_rows(logits, params)
        else:
            token_ids = self._sample_changed(logits, params, requests, changed, masks)
        asking = [row for row, request in enumerate(requests) if request.sampling.logprobs is not None]
        if not asking:
            return SampledRows(token_ids, asking, None)
        index = torch.tensor(asking).to(self._device, non_blocking=True)
        numbers = [requests[row].sampling.logprobs or 0 for row in asking]
        return SampledRows(token_ids, asking, _logprobs(logits[index], token_ids[index], numbers))

    def _sample_changed(
        self,
        logits: torch.Tensor,
        params: torch.Tensor,
        requests: Sequence[Request],
        changed: list[int],
        masks: PendingMasks | None,
    ) -> torch.Tensor:
        """[R] tokens, if the logits of the rows `changed` are changed first."""
        index = torch.tensor(changed, dtype=torch.int64).to(self._device, non_blocking=True)
        values = logits[index].to(torch.float32)  # a copy
        self._change(values, [requests[row] for row in changed])
        if masks is not None:
            allowed = masks.result()
            apply_bitmask(values, torch.searchsorted(index, allowed.rows), allowed.bits)
        if len(changed) == len(requests):
            return sample_rows(values, params)
        token_ids = torch.empty(len(requests), dtype=torch.int64, device=self._device)
        token_ids[index] = sample_rows(values, params[index])
        others = np.setdiff1d(np.arange(len(requests)), changed, assume_unique=True)
        rest = torch.from_numpy(others).to(self._device, non_blocking=True)
        token_ids[rest] = sample_rows(logits[rest], params[rest])
        return token_ids

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

    def _state(self, request: Request) -> SamplerState:
        if request.sampler_state is None:
            request.sampler_state = SamplerState(
                request.sampling, len(request.prompt_token_ids), self._vocab_size, self._eos_token_ids
            )
        state = request.sampler_state
        if state.penalized:
            state.follow(request.token_ids)
        return state

    def _change(self, values: torch.Tensor, requests: Sequence[Request]) -> None:
        """Apply bias, penalties and min_tokens to `values` [R, V] in place, in that order."""
        states = [self._state(request) for request in requests]
        rows = range(len(requests))
        biased = [row for row in rows if len(states[row].bias_ids)]
        if biased:
            index, token_ids = self._pairs(biased, [states[row].bias_ids for row in biased])
            add_bias(values, index, token_ids, self._upload([states[row].bias_values for row in biased]))
        penalized = [row for row in rows if states[row].penalized]
        if penalized:
            index, token_ids = self._pairs(penalized, [states[row].seen_ids for row in penalized])
            counts = self._upload([states[row].output_counts for row in penalized])
            repetition, presence, frequency = (
                self._upload(
                    [
                        np.full(len(states[row].seen_ids), getattr(requests[row].sampling, name), np.float32)
                        for row in penalized
                    ]
                )
                for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
            )
            penalize(values, index, token_ids, counts, repetition, presence, frequency)
        # A grammar may allow nothing but an end; its mask decides whether one can be held back.
        young = [row for row in rows if _is_young(requests[row]) and requests[row].matcher is None]
        if young:
            forbid(values, *self._pairs(young, [states[row].end_ids for row in young]))

    def _pairs(self, rows: list[int], token_ids: list[npt.NDArray[np.int64]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and token index of every entry, [N] int64 each."""
        index = np.repeat(np.array(rows, np.int64), [len(ids) for ids in token_ids])
        return self._upload([index]), self._upload(token_ids)

    def _upload(self, arrays: Sequence[npt.NDArray[np.generic]]) -> torch.Tensor:
        return upload([np.concatenate(arrays)], self._device)[0]


def _logprobs(logits: torch.Tensor, token_ids: torch.Tensor, numbers: list[int]) -> RowLogprobs:
    """Log probabilities of one token a row of `logits` [rows, V] and of the `numbers` [rows] likeliest ones."""
    return RowLogprobs(numbers, *top_logprobs(logits, token_ids, min(max(numbers), logits.shape[1])))
