"""One response while it comes into being: its turn runs in a task of its own, and events tell what happens.

The source knows no connection. Whoever reads its events may be a client's stream, a recorder for the store, or both.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from ...errors import ApiError, translate
from ..services import Services
from ..turn import Turn, TurnEvent, TurnRequest, prepare_turn, run_turn_in_batches
from .answer import Json, effective_style, error_object, usage_object
from .fitting import prepare_fitting
from .numbered import Event, Numbers
from .output import Output

_log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 10.0
"""After a silence as long as this the stream repeats that the response is in progress, since agents give up else."""
_TICKS_PER_SILENCE = 4
FIRST_SIGN_SECONDS = 2.0
"""What goes wrong before is an ordinary error answer; then the stream begins, and what goes wrong fails it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a response is made of."""

    request: TurnRequest
    head: Json
    """The response object before anything has happened."""
    input_items: Sequence[Json]
    """What the request adds to the conversation."""
    make_output: Callable[[Numbers, Turn], Output]
    may_shorten: bool
    """The oldest parts of a conversation that is too long may go."""


class LiveResponse:
    """A response in the making; `start` it, read its `events` once, or `close` it.

    Args:
        plan: what it is made of.
        services: the model and its engine.

    Attributes:
        response: the response object as of now.
        input_items: what the request adds to the conversation.
        error: what made it fail.
    """

    def __init__(self, plan: Plan, services: Services) -> None:
        self.response = plan.head
        self.input_items = plan.input_items
        self.error: ApiError | None = None
        self._plan = plan
        self._services = services
        self._numbers = Numbers()
        self._news: asyncio.Queue[list[TurnEvent] | Exception | None] = asyncio.Queue()
        self._first: list[TurnEvent] | Exception | None = []
        self._turn: Turn | None = None
        self._output: Output | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(self, *, patiently: bool = False) -> None:
        """Begin the work, and wait a little for what is wrong with the request; `patiently`: until that is known.

        Raises:
            Exception: whatever ended the work at once; nothing is left of it.
        """
        self._task = asyncio.create_task(self._work(), name=self.response["id"])
        try:
            async with asyncio.timeout(None if patiently else FIRST_SIGN_SECONDS):
                self._first = await self._news.get()
        except TimeoutError:
            return  # no news is good news
        except BaseException:
            await self.close()
            raise
        if isinstance(self._first, Exception):
            await self.close()
            raise self._first

    async def events(self) -> AsyncGenerator[Event]:
        """The stream's events; the last one is response.completed, response.incomplete or response.failed.

        Closing the generator ends the work.
        """
        try:
            for event in self._begin():
                yield event
            self._watch_silence()
            spoken = time.monotonic()
            news = self._first
            while news is not None and not isinstance(news, Exception):
                events = self._feed(news)
                if not events and time.monotonic() - spoken >= KEEP_ALIVE_SECONDS:
                    events = [self._numbers.event("response.in_progress", {"response": self.response})]
                for event in events:
                    yield event
                    spoken = time.monotonic()
                news = await self._news.get()
            yield self._end(news)
        finally:
            await self.close()

    async def close(self) -> None:
        """End the work, if it still goes on."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        """Put what is new into the queue: batches of events, then an error, or None at the end."""
        last: Exception | None = None
        try:
            prepare = prepare_fitting if self._plan.may_shorten else prepare_turn
            self._turn = turn = await prepare(self._services, self._plan.request)
            self._output = self._plan.make_output(self._numbers, turn)
            if self.response["background"]:  # its client waits for no more than that the request is right
                self._news.put_nowait([])
            async with aclosing(run_turn_in_batches(turn, self._services)) as batches:
                async for batch in batches:
                    if batch:
                        self._news.put_nowait(batch)
        except Exception as error:
            last = error
        self._news.put_nowait(last)

    def _watch_silence(self) -> None:
        """Put an empty batch into the queue now and then: one timer costs less than a time limit for every step."""
        self._news.put_nowait([])
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(KEEP_ALIVE_SECONDS / _TICKS_PER_SILENCE, self._watch_silence)

    def _begin(self) -> list[Event]:
        self.response = self.response | self._known_of_turn()
        created = self._numbers.event("response.created", {"response": self.response})
        if not self.response["background"]:
            return [created, self._numbers.event("response.in_progress", {"response": self.response})]
        queued = self._numbers.event("response.queued", {"response": self.response})
        self.response = self.response | {"status": "in_progress"}
        return [created, queued, self._numbers.event("response.in_progress", {"response": self.response})]

    def _known_of_turn(self) -> Json:
        """What the model decides: its name, defaults and abilities."""
        if self._turn is None:
            return {}
        served = self._turn.served
        sampling = self._turn.generation.choices[0].job.sampling
        variables = served.chat_template.variables if served.chat_template else ()
        style = effective_style(self._plan.head, variables)
        return style | {"model": served.name, "temperature": sampling.temperature, "top_p": sampling.top_p}

    def _feed(self, batch: list[TurnEvent]) -> list[Event]:
        """The stream's events for what is new; the computing of a long prompt, for one, is not worth any."""
        return self._output.feed(batch) if self._output is not None else []

    def _end(self, error: Exception | None) -> Event:
        changes: Json = self._known_of_turn() | {"usage": self._usage()}
        if self._output is not None:
            changes["output"] = self._output.items
        if error is not None:
            self.error = translate(error)
            if self.error.status >= 500:
                _log.error("response %s failed", self.response["id"], exc_info=error)
            changes |= {"status": "failed", "error": error_object(self.error)}
        elif self._output is not None and self._output.is_cut:
            changes |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        else:
            changes |= {"status": "completed", "completed_at": int(time.time())}
        self.response = self.response | changes
        return self._numbers.event(f"response.{self.response['status']}", {"response": self.response})

    def _usage(self) -> dict[str, Any] | None:
        if self._turn is None:
            return None
        ready = self._services.engine.models.get(self._turn.served.name)
        return usage_object(self._turn.usage(), ready.block_size if ready else 0)
