"""What the worker has sent for one job and nobody has taken yet, and how several outputs of a job become one."""

import asyncio
from typing import Generic, TypeVar

from penstock.scheduler.messages import RequestOutput

_T = TypeVar("_T")


class Mailbox(Generic[_T]):
    """Outputs of one job, for its one reader."""

    def __init__(self) -> None:
        self._items: list[_T] = []
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    def put(self, item: _T) -> None:
        """Add an output."""
        self._items.append(item)
        self._wake()

    def fail(self, error: Exception) -> None:
        """What the reader gets once it has taken what is there; a later call replaces it."""
        self._error = error
        self._wake()

    async def take(self) -> list[_T]:
        """Everything that waits, at least one item; then raises what `fail` was given."""
        if not self._items:
            if self._error is not None:
                raise self._error
            self._reader = asyncio.get_running_loop().create_future()  # an asyncio.Event costs twice as much
            await self._reader
            return await self.take()
        items, self._items = self._items, []
        return items

    def _wake(self) -> None:
        if self._reader is not None:
            if not self._reader.done():
                self._reader.set_result(None)
            self._reader = None


def merge(outputs: list[RequestOutput]) -> RequestOutput:
    """Consecutive outputs of one job as one."""
    if len(outputs) == 1:
        return outputs[0]
    last = outputs[-1]
    with_logprobs = any(output.logprobs is not None for output in outputs)
    of_prompt = [output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None]
    return RequestOutput(
        request_id=last.request_id,
        token_ids=[token_id for output in outputs for token_id in output.token_ids],
        num_cached_tokens=max(output.num_cached_tokens for output in outputs),
        num_computed_tokens=max(output.num_computed_tokens for output in outputs),
        finish_reason=last.finish_reason,
        stop_token_id=last.stop_token_id,
        logprobs=[entry for output in outputs for entry in output.logprobs or ()] if with_logprobs else None,
        prompt_logprobs=of_prompt[0] if of_prompt else None,
        error=last.error,
        timings=last.timings,
    )
