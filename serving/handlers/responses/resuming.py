"""Takes up background responses whose process has ended, and makes them from the beginning, as their request says.

Request, seed and time are the first run's, so that the answer is the one that would have been given. What comes between
may differ: what was said in the conversation since then is part of it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import orjson

from ...errors import FORESEEN, ApiError, translate
from ...principal import Principal
from ...protocol.responses.body import ResponseBody
from ...store.unfinished import Abandoned, Claimed
from ..background import MAX_BACKGROUND
from ..services import Services
from .answer import error_object
from .handler import Origin, ResponsesHandler
from .live import LiveResponse
from .numbered import Event

_log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Processes that a response may outlive; it is not tried again after one more, which it may well have killed."""
LOOK_INTERVAL = 5.0
PATIENCE_SECONDS = 600.0
"""How long a response is tried again that cannot be made now: its model has no room, or too many requests wait."""
_RETRY_SECONDS = 5.0


class ResumedResponse:
    """The source of a response that is made again; it begins when its events are asked for.

    Args:
        claimed: the response.
        principal: whose it is; None: its key is not valid any more.
        services: the model and its engine.
    """

    def __init__(self, claimed: Claimed, principal: Principal | None, services: Services) -> None:
        self.response = claimed.response
        self.input_items = claimed.input_items
        self._claimed = claimed
        self._principal = principal
        self._handler = ResponsesHandler(services)
        self._live: LiveResponse | None = None

    async def events(self) -> AsyncGenerator[Event]:
        """The stream's events, numbered from 0; the last one carries the whole response."""
        try:
            self._live = await self._begin()
        except FORESEEN as error:
            failed = self.response | {"status": "failed", "error": error_object(translate(error))}
            yield {"type": "response.failed", "sequence_number": 0, "response": failed}
            return
        async with aclosing(self._live.events()) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        """End the work."""
        if self._live is not None:
            await self._live.close()

    async def _begin(self) -> LiveResponse:
        if self._claimed.num_deaths > MAX_DEATHS:
            raise ApiError(
                f"The server has ended {self._claimed.num_deaths} times while it made this response, which is not "
                "tried again. Send the request anew if it was not the reason.",
                status=500,
                code="response_given_up",
            )
        if self._principal is None:
            raise ApiError(
                "The API key with which this response was asked for is not valid any more.",
                status=403,
                code="invalid_api_key",
            )
        body = await asyncio.to_thread(lambda: ResponseBody.model_validate(orjson.loads(self._claimed.request.body)))
        origin = Origin(self.response["id"], int(self.response["created_at"]), self._claimed.request.seed)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return (await self._handler.accept(body, self._principal, origin)).live
            except FORESEEN as error:
                if translate(error).status not in (429, 503) or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)


class Resumption:
    """Looks for abandoned responses when the process starts, and every few seconds after that.

    Args:
        services: makes them.
        principal_of: who it is that has an id; None: nobody any more.
    """

    def __init__(self, services: Services, principal_of: Callable[[str], Principal | None]) -> None:
        self._services = services
        self._principal_of = principal_of
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._watch(), name="resumption")

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while not self._services.drain.begun:
            try:
                await self.look()
            except ApiError as error:
                _log.error("unfinished background responses cannot be looked for: %s", error.message)
            await asyncio.sleep(LOOK_INTERVAL)

    async def look(self) -> None:
        """Take up what is abandoned and can be made here.

        Raises:
            ApiError: 503, the store cannot be used.
        """
        room = MAX_BACKGROUND - self._services.runs.num_background
        for abandoned in await self._services.store.unfinished.abandoned(room):
            # Servers with other models may share the store.
            if await self._services.registry.find(abandoned.model, "generate") is not None:
                await self._take_up(abandoned)

    async def _take_up(self, abandoned: Abandoned) -> None:
        runs = self._services.runs
        claimed = await runs.claim(abandoned.principal, abandoned.response_id)
        if claimed is None:
            return
        conversation = claimed.response.get("conversation")
        try:
            with runs.turn_in(claimed.principal, conversation["id"] if conversation else None):
                runs.resume(claimed, ResumedResponse(claimed, self._principal_of(claimed.principal), self._services))
        except ApiError:  # somebody speaks in the conversation now
            await self._services.store.unfinished.release_one(claimed.principal, abandoned.response_id)
            return
        _log.info("response %s is made again: its process has ended", abandoned.response_id)
