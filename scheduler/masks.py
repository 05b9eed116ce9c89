"""Finds out in other threads, while the model computes, which tokens the grammars of a step allow next."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from .request import Request

if TYPE_CHECKING:
    from llguidance import LLExecutor

# N requests with a grammar, W = ceil(V / 32) words of a mask


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Which tokens may come next, for the rows of a batch that have a grammar."""

    rows: list[int]
    """Whose masks these are."""
    bits: torch.Tensor  # [N, W] int32, a 1 for each allowed token, lowest bit first


class MaskFiller:
    """Fills the masks of one model's steps; they are computed one step after the other."""

    def __init__(self, vocab_size: int, eos_token_ids: Iterable[int], device: torch.device) -> None:
        self._num_words = -(-vocab_size // 32)
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._device = device
        self._thread = ThreadPoolExecutor(1, "grammar-masks")  # it only waits for the library's own threads
        self._executor: LLExecutor | None = None
        self._buffers = [torch.empty(0, self._num_words, dtype=torch.int32) for _ in range(2)]
        """Used in turn: that of the step before may still be on its way to the device."""

    def start(self, requests: Sequence[Request]) -> "PendingMasks | None":
        """Begin to fill the masks of the requests that sample in this step; None if none of them has a grammar."""
        rows = [row for row, request in enumerate(requests) if request.matcher is not None]
        if not rows:
            return None
        self._buffers.reverse()
        if len(self._buffers[0]) < len(rows):
            shape = (max(len(rows), 2 * len(self._buffers[0])), self._num_words)
            self._buffers[0] = torch.empty(shape, dtype=torch.int32, pin_memory=self._device.type == "cuda")
        chosen = [requests[row] for row in rows]
        bits = self._buffers[0][: len(rows)]
        return PendingMasks(self, rows, chosen, bits, self._thread.submit(self._fill, chosen, bits))

    def _fill(self, requests: Sequence[Request], bits: torch.Tensor) -> None:
        from llguidance import LLExecutor

        if self._executor is None:
            self._executor = LLExecutor()
        matchers = [
            (request.matcher.matcher, index) for index, request in enumerate(requests) if request.matcher is not None
        ]
        # Here the interpreter is free for the thread that runs the model.
        self._executor.unsafe_compute_mask_ptr(matchers, bits.data_ptr(), 4 * self._num_words, len(requests))

    def hold_back_ends(self, requests: Sequence[Request], bits: torch.Tensor) -> None:
        """Take the end tokens out of the masks of requests that may not end yet, where the grammar allows others."""
        words = bits.numpy().view(np.uint32)
        for index, request in enumerate(requests):
            params = request.sampling
            ends = set(self._eos_token_ids) if params.ignore_eos else set()
            if request.num_output_tokens < params.min_tokens:
                ends |= self._eos_token_ids | set(params.stop_token_ids)
            if ends:
                _clear_unless_alone(words[index], [token_id for token_id in ends if 0 <= token_id < self._vocab_size])

    def upload(self, rows: list[int], bits: torch.Tensor) -> TokenMasks:
        """The masks on the model's device, with the rows they belong to."""
        return TokenMasks(rows, bits.to(self._device, non_blocking=True))


class PendingMasks:
    """The masks of one step, being filled."""

    def __init__(
        self, filler: MaskFiller, rows: list[int], requests: list[Request], bits: torch.Tensor, filled: Future[None]
    ) -> None:
        self._filler = filler
        self._rows = rows
        self._requests = requests
        self._bits = bits
        self._filled = filled

    def result(self) -> TokenMasks:
        """Wait for the masks."""
        self._filled.result()
        self._filler.hold_back_ends(self._requests, self._bits)
        return self._filler.upload(self._rows, self._bits)


def _clear_unless_alone(words: npt.NDArray[np.uint32], token_ids: list[int]) -> None:
    """Forbid the tokens in a mask, unless they are all that it allows."""
    before = words.copy()
    for token_id in token_ids:
        words[token_id // 32] &= np.uint32(~(1 << token_id % 32) & 0xFFFFFFFF)
    if not words.any():
        words[:] = before
