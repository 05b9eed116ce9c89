"""One response being made: a task that records what comes from its source, and stores it at its end.

A background response goes on whoever leaves, and is left to the next process if this one ends before. Any other belongs
to the client that asked for it and is cancelled with it, as everything here is; if it is stored, then with what there
was, so that a lost stream can be read again up to that point.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Literal, Protocol

import orjson

from ..errors import ApiError
from ..store.database import TOO_LARGE, Addition
from ..store.responses import AnothersError
from ..store.store import Store
from .recording import Recording

_log = logging.getLogger(__name__)
Json = dict[str, Any]

_TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})
_WITH_RESPONSE = frozenset({"response.created", "response.queued", "response.in_progress"})
_BROKEN = "The server had an internal error. The log names it under this response's id."


class ResponseSource(Protocol):
    """What makes one response; it knows nothing of connections."""

    @property
    def response(self) -> Json:
        """The response object as it is before the first event."""
        ...

    @property
    def input_items(self) -> Sequence[Json]:
        """What the request adds to the conversation; complete, as `complete_items` makes them."""
        ...

    def events(self) -> AsyncGenerator[Json]:
        """The stream's events, numbered from 0.

        The last one is response.completed, response.incomplete or response.failed and carries the whole response.
        """
        ...

    async def close(self) -> None:
        """End the work, which may have begun before anybody reads events; may be called more than once."""
        ...


class ResponseRun:
    """One response being made; `ResponseRuns.start` makes it.

    Args:
        source: what makes it.
        principal: whose it is.
        store: where it and what it adds to a conversation goes.
        is_stored: it is kept at its end.
        is_streamed: events are wanted, now or later.
        background: it goes on without its client.
        process: this one's name in leases.
        first_number: the least sequence number of its events.

    Attributes:
        response: the response object as of now.
        recording: its events so far, if it is streamed.
    """

    def __init__(
        self,
        source: ResponseSource,
        principal: str,
        store: Store,
        *,
        is_stored: bool,
        is_streamed: bool,
        background: bool,
        process: str,
        first_number: int = 0,
    ) -> None:
        self.response = source.response
        self.input_items = list(source.input_items)
        self.background = background
        self.is_streamed = is_streamed
        self.recording = Recording(forgets=not is_stored, first_number=first_number)
        self._first_number = first_number
        self._process = process
        self._source = source
        self._principal = principal
        self._store = store
        self._is_stored = is_stored
        self._ending: Literal["cancelled", "suspended"] | None = None
        self._has_begun = False
        self._is_finishing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> "asyncio.Task[None]":
        """Begin; the task is done when the response is finished and stored, and never fails."""
        self._task = asyncio.create_task(self._make(), name=self.response["id"])
        return self._task

    def when_done(self, call: Callable[[object], object]) -> None:
        """Have something called, with an argument that means nothing, when the response is finished and stored."""
        assert self._task is not None
        self._task.add_done_callback(call)

    async def stream(self) -> AsyncGenerator[bytes]:
        """Framed events for the client that asked for the response; others use `recording.follow`."""
        try:
            async for framed in self.recording.follow():
                yield framed
        finally:
            self._leave()

    async def result(self) -> Json:
        """The finished response, for the client that asked for it."""
        try:
            await self._wait()
        finally:
            self._leave()
        return self.response

    async def cancel(self) -> Json:
        """End it, and return the response as it ended."""
        self._end("cancelled")
        await self._wait()
        return self.response

    def stop(self) -> None:
        """Begin to end it because the server stops; one of the background is left to whoever makes it again."""
        self._end("suspended" if self.background else "cancelled")

    async def discard(self) -> None:
        """End it without a trace in the store."""
        self._is_stored = False
        await self.cancel()

    async def _wait(self) -> None:
        assert self._task is not None
        await asyncio.wait({self._task})

    def _leave(self) -> None:
        """The client that asked for it is gone, or has everything."""
        if not self.background:
            self._end("cancelled")

    def _end(self, ending: Literal["cancelled", "suspended"]) -> None:
        assert self._task is not None
        if not self._is_finishing and self._ending is None:
            self._ending = ending
            if self._has_begun:  # a task that has not would end without a word; it looks for itself
                self._task.cancel()

    async def _make(self) -> None:
        self._has_begun = True
        try:
            if self._ending is not None:
                raise asyncio.CancelledError
            last = await self._record()
        except asyncio.CancelledError:
            if self._ending == "suspended":
                self._is_finishing = True
                await self._source.close()
                self.recording.end(_suspended(self.response["id"]))
                return
            last = self._last_event("cancelled")
        except Exception:
            _log.exception("response %s failed", self.response["id"])
            last = self._last_event("failed")
        self._is_finishing = True
        await self._source.close()
        await self._keep(last)
        if self.is_streamed:
            self.recording.append(last)
        self.recording.end()

    async def _record(self) -> Json:
        """Record the events as they come, up to the last one, which is returned."""
        async with aclosing(self._source.events()) as events:
            async for event in events:
                if self._first_number:
                    event = event | {"sequence_number": self._first_number + event["sequence_number"]}
                if event["type"] in _TERMINAL:
                    return event
                if event["type"] in _WITH_RESPONSE:
                    self.response = event["response"] | {"output": self.response["output"]}
                elif event["type"] == "response.output_item.done":
                    self.response = self.response | {"output": [*self.response["output"], event["item"]]}
                if self.is_streamed:
                    self.recording.append(event)
        raise RuntimeError("the events ended without a last one")

    def _last_event(self, status: Literal["cancelled", "failed"]) -> Json:
        """What ends the stream in place of the source's own last event.

        OpenAI has no event for a cancelled response; the status in the response tells it from one that was too long.
        """
        error = {"code": "server_error", "message": _BROKEN} if status == "failed" else None
        return {
            "type": "response.failed" if status == "failed" else "response.incomplete",
            "sequence_number": self.recording.next_number,
            "response": self.response | {"status": status, "error": error},
        }

    async def _keep(self, last: Json) -> None:
        """Store the finished response and what it adds to its conversation, both or nothing.

        The answer goes to its client in any case: what could not be stored says so by `store: false`.
        """
        response = last["response"]
        try:
            said = await self._said(response)
            if self._is_stored:
                await self._save(last, said)
            elif said is not None:
                await self._store.database.write(*said)
        except AnothersError:
            _log.warning("response %s is left to another process, which has begun to make it again", response["id"])
        except ApiError as error:
            response["store"] = False
            _log.error("response %s could not be stored: %s", response["id"], error.message)
        self.response = response

    async def _said(self, response: Json) -> Addition | None:
        """What the response adds to its conversation, if there is one and the response is worth it."""
        conversation = response.get("conversation")
        if not conversation or response["status"] not in ("completed", "incomplete"):
            return None
        items = [*self.input_items, *response["output"]]
        return await self._store.conversations.appending(self._principal, conversation["id"], items)

    async def _save(self, last: Json, said: Addition | None) -> None:
        """Store the response, without what makes it too large, and also if its conversation takes nothing more."""
        events = [*self.recording.events(), orjson.dumps(last)] if self.is_streamed else []
        save = partial(
            self._store.responses.save,
            self._principal,
            last["response"],
            self.input_items,
            process=self._process if self.background else None,
        )

        async def save_bounded(said: Addition | None) -> None:
            try:
                await save(events=events, also=said)
            except ApiError as error:
                if error.status != TOO_LARGE or not events:
                    raise
                await save(also=said)

        try:
            await save_bounded(said)
        except ApiError:
            if said is not None:
                await save_bounded(None)
            raise


def _suspended(response_id: str) -> ApiError:
    return ApiError(
        f"The server is shutting down before response '{response_id}' is finished. It is made again when the server is "
        "back: read it then, or follow it again from the last event that you have.",
        status=503,
        code="server_draining",
    )
