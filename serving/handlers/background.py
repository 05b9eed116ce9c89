"""Responses being made: each in a task of its own, recorded, followed by any number of readers, stored at its end.

A background response goes on whoever leaves. Any other belongs to the client that asked for it and is cancelled with
it, as everything here is; if it is stored, then with what there was, so that a lost stream can be read again up to
that point.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Literal, Protocol

import orjson

from ..errors import ApiError
from ..store.database import TOO_LARGE
from ..store.responses import Lease
from ..store.store import Store
from ..store.turns import TurnLocks
from .recording import Recording

_log = logging.getLogger(__name__)
Json = dict[str, Any]

MAX_BACKGROUND = 512
"""Background responses at once; each holds its events in memory."""
LEASE_SECONDS = 20.0
"""After that long without a sign of life from its process, an unfinished response counts as failed."""
_RENEWAL_INTERVAL = 5.0
_TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})
_WITH_RESPONSE = frozenset({"response.created", "response.queued", "response.in_progress"})
_STOPPED = "The server was stopped before this response was finished. Send the request again."
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
    ) -> None:
        self.response = source.response
        self.input_items = list(source.input_items)
        self.background = background
        self.is_streamed = is_streamed
        self.recording = Recording(forgets=not is_stored)
        self._source = source
        self._principal = principal
        self._store = store
        self._is_stored = is_stored
        self._ending: Literal["cancelled", "failed"] | None = None
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
        """Begin to end it because the server stops."""
        self._end("failed" if self.background else "cancelled")

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

    def _end(self, ending: Literal["cancelled", "failed"]) -> None:
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
            last = self._last_event(self._ending or "cancelled", _STOPPED)
        except Exception:
            _log.exception("response %s failed", self.response["id"])
            last = self._last_event("failed", _BROKEN)
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
                if event["type"] in _TERMINAL:
                    return event
                if event["type"] in _WITH_RESPONSE:
                    self.response = event["response"] | {"output": self.response["output"]}
                elif event["type"] == "response.output_item.done":
                    self.response = self.response | {"output": [*self.response["output"], event["item"]]}
                if self.is_streamed:
                    self.recording.append(event)
        raise RuntimeError("the events ended without a last one")

    def _last_event(self, status: Literal["cancelled", "failed"], message: str) -> Json:
        """What ends the stream in place of the source's own last event.

        OpenAI has no event for a cancelled response; the status in the response tells it from one that was too long.
        """
        error = {"code": "server_error", "message": message} if status == "failed" else None
        return {
            "type": "response.failed" if status == "failed" else "response.incomplete",
            "sequence_number": self.recording.next_number,
            "response": self.response | {"status": status, "error": error},
        }

    async def _keep(self, last: Json) -> None:
        """Store the finished response, and append to its conversation.

        The answer goes to its client in any case: what could not be stored says so by `store: false`.
        """
        self.response = response = last["response"]
        conversation = response.get("conversation")
        try:
            if self._is_stored:
                await self._save(last)
            if conversation and response["status"] in ("completed", "incomplete"):
                items = [*self.input_items, *response["output"]]
                await self._store.conversations.append(self._principal, conversation["id"], items)
        except ApiError as error:
            response["store"] = False
            _log.error("response %s could not be stored: %s", response["id"], error.message)

    async def _save(self, last: Json) -> None:
        """Store the response with its events, or without them if that is too much."""
        events = [*self.recording.events(), orjson.dumps(last)] if self.is_streamed else []
        try:
            await self._store.responses.save(self._principal, self.response, self.input_items, events=events)
        except ApiError as error:
            if error.status != TOO_LARGE or not events:
                raise
            await self._store.responses.save(self._principal, self.response, self.input_items)


class ResponseRuns:
    """All responses being made in this process.

    Args:
        store: where they go.
        turns: tells other processes of the conversations in which something is said here; None: there are none.
    """

    def __init__(self, store: Store, turns: TurnLocks | None = None) -> None:
        self.store = store
        self._turns = turns
        self._process = uuid.uuid4().hex
        self._by_task: dict[asyncio.Task[None], ResponseRun] = {}
        self._by_id: dict[tuple[str, str], ResponseRun] = {}  # of those that are stored
        self._conversations: set[tuple[str, str]] = set()  # of principals: something is said in them now
        self._renewal: asyncio.Task[None] | None = None

    @contextmanager
    def turn_in(self, principal: str, conversation_id: str | None) -> Iterator[None]:
        """Prepare and `start` a response in a conversation, which nobody else can do until the response is kept.

        Two at once would answer without knowing of each other, and their items would be mixed up.

        Args:
            principal: whose conversation it is.
            conversation_id: None: there is none, and nothing to guard.

        Raises:
            ApiError: 400, another response is being made in it.
        """
        if conversation_id is None:
            yield
            return
        turn = (principal, conversation_id)
        if turn in self._conversations or not (self._turns is None or self._turns.take(*turn)):
            raise _locked(conversation_id)
        self._conversations.add(turn)
        try:
            yield
        except BaseException:
            self._end_turn(turn)
            raise

    def _end_turn(self, turn: tuple[str, str]) -> None:
        self._conversations.discard(turn)
        if self._turns is not None:
            self._turns.release(*turn)

    async def start(
        self, source: ResponseSource, principal: str, *, store: bool, stream: bool, background: bool
    ) -> ResponseRun:
        """Begin to make a response.

        Args:
            source: what makes it.
            principal: whose it is.
            store: keep it; a background response has to be kept.
            stream: its events are wanted; those of a background response always are.
            background: go on when the client leaves.

        Raises:
            ApiError: 413, it is too large to be stored; 429, too many in the background; 503, the store is unusable.
        """
        assert store or not background
        if background and self.num_background >= MAX_BACKGROUND:
            raise _too_many()
        run = ResponseRun(
            source,
            principal,
            self.store,
            is_stored=store,
            is_streamed=stream or background,
            background=background,
        )
        if background:
            lease = Lease(self._process, self._lease_end())
            await self.store.responses.save(principal, run.response, run.input_items, lease=lease)
        elif store:
            await self.store.responses.check(run.response, run.input_items)
        key = (principal, run.response["id"])
        task = run.start()
        self._by_task[task] = run
        task.add_done_callback(self._by_task.pop)
        if conversation := run.response.get("conversation"):
            turn = (principal, conversation["id"])
            task.add_done_callback(lambda _: self._end_turn(turn))
        if store:
            self._by_id[key] = run
            task.add_done_callback(lambda _: self._by_id.pop(key, None))
        if background and self._renewal is None:
            self._renewal = asyncio.create_task(self._renew_leases(), name="response-leases")
        return run

    def find(self, principal: str, response_id: str) -> ResponseRun | None:
        """A response that is being made, if it will be stored."""
        return self._by_id.get((principal, response_id))

    @property
    def num_background(self) -> int:
        """Background responses being made."""
        return sum(run.background for run in self._by_id.values())

    def stop_background(self) -> None:
        """Begin to end the background responses, so that those who follow them need not be waited for."""
        for run in self._by_task.values():
            if run.background:
                run.stop()

    async def close(self) -> None:
        """End all of them; those of the background have failed then."""
        if self._renewal is not None:
            self._renewal.cancel()
        for run in self._by_task.values():
            run.stop()
        await asyncio.gather(*self._by_task)

    def _lease_end(self) -> float:
        return self.store.database.clock() + LEASE_SECONDS

    async def _renew_leases(self) -> None:
        """Show that this process lives, as long as it makes background responses."""
        while self.num_background:
            await asyncio.sleep(_RENEWAL_INTERVAL)
            try:
                await self.store.responses.renew(Lease(self._process, self._lease_end()))
            except ApiError as error:
                _log.error("the leases of background responses could not be renewed: %s", error.message)
        self._renewal = None


def _locked(conversation_id: str) -> ApiError:
    return ApiError(
        f"Another response is being made in conversation '{conversation_id}'. Wait until it is finished, or cancel it.",
        code="conversation_locked",
        param="conversation",
    )


def _too_many() -> ApiError:
    return ApiError(
        f"The server makes {MAX_BACKGROUND} responses in the background already. Try again later.",
        status=429,
        code="too_many_background_responses",
        param="background",
        retry_after=5,
    )
