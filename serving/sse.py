"""Server-sent events: how they are framed and sent, and how a client that goes away ends the work done for it."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
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
COMMENT = b": in progress\n\n"
"""Clients pass over it; proxies see that the connection lives."""
PAUSE_SECONDS = 10.0
"""Longest silence of a stream before its first token: shorter than any client's or proxy's idle timeout."""

RAW_SEND = "raw_send"
"""Key of a request's state: the server's own `send`, without the layers that only look at how an answer begins."""

Events = AsyncGenerator[bytes]
MakeReady = Callable[[], Coroutine[Any, Any, Events]]


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
        events: framed events, closed when the client goes away; or what makes ready for them, which may take as long as
            loading a model, and is cancelled then.
        sign_of_life: sent whenever `PAUSE_SECONDS` pass without an event, while `events` are made ready or later.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: Events | Callable[[], Coroutine[Any, Any, Events]], sign_of_life: bytes = COMMENT
    ) -> None:
        self._events = events
        self._sign_of_life = sign_of_life
        self._begun = False
        self._num_sent = 0
        self.status_code = 200
        self.background = None
        # nginx would otherwise collect events before it passes them on
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        await until_disconnect(receive, self._send_all(scope, send))

    async def _send_all(self, scope: Scope, send: Send) -> None:
        last = b""
        try:
            events = await self._ready(self._events, send) if callable(self._events) else self._events
            async with aclosing(events):
                await self._write(await anext(events, b""), send)  # a resumed stream may have nothing left
                send_raw = scope.get("state", {}).get(RAW_SEND, send)
                showing = asyncio.create_task(self._show_life(send_raw))
                try:
                    async for framed in events:
                        self._num_sent += 1
                        await send_raw({"type": "http.response.body", "body": framed, "more_body": True})
                finally:
                    showing.cancel()
                    await asyncio.wait((showing,))
        except Exception as error:
            if not self._begun:
                raise
            # The status is out; this is the only way left to tell the client.
            if not isinstance(error, FORESEEN):
                request_id = scope.get("state", {}).get(REQUEST_ID)
                _log.exception("internal error in a stream of %s, x-request-id %s", scope["path"], request_id)
            last = form_of(scope).event(translate(error), scope)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _show_life(self, send: Send) -> None:
        """Fill pauses in the midst of the stream: a device worker may have died, and the next one loads its models.

        A look every `PAUSE_SECONDS` costs a stream less than a clock for each event.
        """
        while True:
            num_sent = self._num_sent
            await asyncio.sleep(PAUSE_SECONDS)
            if self._num_sent == num_sent:
                await send({"type": "http.response.body", "body": self._sign_of_life, "more_body": True})

    async def _ready(self, make_ready: MakeReady, send: Send) -> Events:
        making = asyncio.create_task(make_ready())
        try:
            while not (await asyncio.wait((making,), timeout=PAUSE_SECONDS))[0]:
                await self._write(self._sign_of_life, send)
            return making.result()
        finally:
            making.cancel()  # if the client has left
            await asyncio.wait((making,))

    async def _write(self, framed: bytes, send: Send) -> None:
        if not self._begun:
            self._begun = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": framed, "more_body": True})
