"""What a launched step has computed, on its way from the device to the host.

On a GPU a step returns before it has run. Its results are copied behind it into pinned memory, and an event tells when
they are there; nothing waits before somebody asks for them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .messages import TokenLogprobs
from .plan import SampledToken
from .request import Request


class HostCopies:
    """Copies of device tensors that are on their way; the originals may be overwritten by later steps."""

    def __init__(self, tensors: Sequence[torch.Tensor], device: torch.device) -> None:
        """Begin to copy `tensors`, which are on `device` and may be none: then there is only the step to wait for."""
        # To the CPU and without waiting means into pinned memory.
        self._copies = [tensor.to("cpu", non_blocking=True, copy=True) for tensor in tensors]
        self._arrived: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> list[torch.Tensor]:
        """The copies, once they are there; also everything launched before them has run then.

        Raises:
            RuntimeError: the device has failed.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copies


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """Log probabilities of one token a row and of the row's likeliest ones."""

    numbers: list[int]
    """How many of the likeliest each row wants."""
    chosen: torch.Tensor  # [rows] float32
    top_token_ids: torch.Tensor  # [rows, max(numbers)] int64
    top_logprobs: torch.Tensor  # [rows, max(numbers)] float32

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What has to come to the host."""
        return [self.chosen, self.top_token_ids, self.top_logprobs]

    def entries(self, chosen: torch.Tensor, ids: torch.Tensor, logprobs: torch.Tensor) -> Iterator[TokenLogprobs]:
        """One entry a row, from the host's copies of `tensors`."""
        rows = zip(self.numbers, chosen.tolist(), ids.tolist(), logprobs.tolist(), strict=True)
        return (TokenLogprobs(value, top[:number], values[:number]) for number, value, top, values in rows)


@dataclass(frozen=True, slots=True)
class PromptSpan:
    """Tokens of a request's prompt whose log probabilities a step finds: `prompt_token_ids[start : end]`."""

    request: Request
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SampledRows:
    """What the sampler chose for the rows of a batch, on the device."""

    token_ids: torch.Tensor  # [R] int64
    asking: list[int]
    """Rows that want log probabilities."""
    logprobs: RowLogprobs | None
    """Theirs; None if there are no such rows."""


class LaunchedBatch:
    """One model's share of a step that the device has been told to compute."""

    def __init__(
        self,
        device: torch.device,
        sampled: SampledRows | None = None,
        prompt_spans: Sequence[PromptSpan] = (),
        prompt_logprobs: RowLogprobs | None = None,
    ) -> None:
        """Begin to copy the results.

        Args:
            device: where they are.
            sampled: of the rows that sample; None: no row does.
            prompt_spans: tokens of prompts whose log probabilities are wanted.
            prompt_logprobs: theirs, a row for each token of all spans; None if there are none.
        """
        self._sampled = sampled
        self._prompt_spans = prompt_spans
        self._prompt_logprobs = prompt_logprobs
        parts = [sampled.logprobs if sampled else None, prompt_logprobs]
        tensors = [sampled.token_ids] if sampled else []
        self._copies = HostCopies(tensors + [tensor for part in parts if part for tensor in part.tensors], device)

    def collect(self) -> list[SampledToken]:
        """Wait for the results, and give prompts their log probabilities.

        Returns:
            One entry for each row that samples, in row order.

        Raises:
            RuntimeError: the device has failed.
        """
        copies = iter(self._copies.wait())
        token_ids: list[int] = next(copies).tolist() if self._sampled else []
        logprobs: dict[int, TokenLogprobs] = {}
        if self._sampled and self._sampled.logprobs:
            entries = self._sampled.logprobs.entries(next(copies), next(copies), next(copies))
            logprobs = dict(zip(self._sampled.asking, entries, strict=True))
        if self._prompt_logprobs:
            found = self._prompt_logprobs.entries(next(copies), next(copies), next(copies))
            for span in self._prompt_spans:
                span.request.prompt_logprobs += [next(found) for _ in range(span.start, span.end)]
        return [SampledToken(token_id, logprobs.get(row)) for row, token_id in enumerate(token_ids)]
