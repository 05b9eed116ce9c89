"""Server-sent events: how they are framed and sent, and how a client that goes away ends the work done for it."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .error_forms import REQUEST_ID, form_of
from .errors import FORESEEN, translate

_log = logging.getLogger(__name__)
T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


def event(data: object) -> bytes:
    """One event with a JSON value."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def typed_event(data: Mapping[str, object]) -> bytes:
    """One event with a JSON object whose `type` is the event's name too."""
    return b"event: %b\ndata: %b\n\n" % (str(data["type"]).encode(), orjson.dumps(data))


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client goes away.

    Args:
        receive: the request's channel; its body must have been read.
        work: what to do for the client.

    Raises:
        ClientDisconnect: the client went away first.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An answer of framed events, sent as they come.

    The status line waits for the first event, so that an error before it is an ordinary error answer; a later one
    becomes a last event in the form of the protocol.

    Args:
        events: framed events; closed when the client goes away.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        self._events = events
        self.status_code = 200
        self.background = None
        # nginx would otherwise collect events before it passes them on
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        await until_disconnect(receive, self._send_all(scope, send))

    async def _send_all(self, scope: Scope, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events, b"")  # a resumed stream may have nothing left
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            last = b""
            try:
                async for framed in events:
                    await send({"type": "http.response.body", "body": framed, "more_body": True})
            except Exception as error:  # the status is out; this is the only way left to tell the client
                if not isinstance(error, FORESEEN):
                    request_id = scope.get("state", {}).get(REQUEST_ID)
                    _log.exception("internal error in a stream of %s, x-request-id %s", scope["path"], request_id)
                last = form_of(scope).event(translate(error), scope)
            await send({"type": "http.response.body", "body": last, "more_body": False})
