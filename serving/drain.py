"""Ends an API process in order: no new work is taken, what runs gets its time, and the log tells how much that is.

The listener stays open meanwhile. Whoever asks for work hears when to come back; what only reads, or ends something,
goes on: probes, metrics, stored answers, a background response that is followed or cancelled.
"""

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import ApiError

_log = logging.getLogger(__name__)

MAX_RETRY_AFTER = 60
"""Seconds; OpenAI's clients heed no longer time."""
_READING = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_ENDING = re.compile(r"/v1/responses/[^/]+/cancel")
_LOOK_INTERVAL = 0.05
_REPORT_INTERVAL = 5.0
_UNREAD_SECONDS = 2.0


class Drain:
    """Whether a process takes work, and how much it has.

    Args:
        timeout: seconds that work gets to finish once new work is refused.
        name: of the process in the log; "": the server's only one.

    Attributes:
        num_requests: requests in flight that are work.
        num_background: tells how many background responses are being made, for which no connection waits.
    """

    def __init__(self, timeout: float = 0.0, name: str = "") -> None:
        self.num_requests = 0
        self.num_background: Callable[[], int] = lambda: 0
        self._timeout = timeout
        self._title = f"{name}: " if name else ""
        self._deadline: float | None = None

    @property
    def begun(self) -> bool:
        """New work is refused."""
        return self._deadline is not None

    @property
    def seconds_left(self) -> float:
        """What work in flight still gets."""
        return self._timeout if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def begin(self) -> None:
        """Refuse new work from now on."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._timeout

    async def wait(self) -> bool:
        """Refuse new work, and return when nothing runs any more or the time is over: whether all has finished."""
        self.begin()
        if self._is_busy():
            end = "another Ctrl-C or SIGTERM ends at once"
            _log.info("%sdraining: %s, at most %g s; %s", self._title, self._in_flight(), self._timeout, end)
        reported = time.monotonic()
        while self._is_busy() and self.seconds_left:
            await asyncio.sleep(min(_LOOK_INTERVAL, self.seconds_left))
            if time.monotonic() - reported >= _REPORT_INTERVAL:
                reported = time.monotonic()
                _log.info("%sdraining: %s, %.0f s left", self._title, self._in_flight(), self.seconds_left)
        if self._is_busy():
            _log.warning("%sthe time to drain is over with %s", self._title, self._in_flight())
        return not self._is_busy()

    @contextmanager
    def counting(self, scope: Scope) -> Iterator[None]:
        """An exchange that is waited for if it is work."""
        num = int(_is_work(scope))
        self.num_requests += num
        try:
            yield
        finally:
            self.num_requests -= num

    def refusal(self) -> ApiError:
        """503 for new work; the wait that it names is the longest until another server can have this one's place."""
        seconds = min(max(1, math.ceil(self.seconds_left)), MAX_RETRY_AFTER)
        return ApiError(
            f"The server is shutting down and takes no new requests. Send this one again in {seconds} s, or to another "
            "server.",
            status=503,
            code="server_draining",
            retry_after=seconds,
        )

    def _is_busy(self) -> bool:
        return bool(self.num_requests or self.num_background())

    def _in_flight(self) -> str:
        num_background = self.num_background()
        requests = f"{self.num_requests} request{'s' * (self.num_requests != 1)} in flight"
        if not num_background:
            return requests
        return f"{requests}, {num_background} background response{'s' * (num_background != 1)}"


class DrainGuard:
    """ASGI middleware that counts work, refuses it while the process drains, and lets no connection live on then.

    Args:
        app: the application.
        drain: of the process.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One exchange."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not _is_work(scope):
            await self._app(scope, receive, self._last_on_connection(send))
        elif self._drain.begun:
            await _read_all(receive)
            await self._drain.refusal().response(scope)(scope, receive, self._last_on_connection(send))
        else:
            with self._drain.counting(scope):
                await self._app(scope, receive, self._last_on_connection(send))

    def _last_on_connection(self, send: Send) -> Send:
        """The channel of an answer after which its connection is closed, if the process drains by then."""

        async def send_last(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and self._drain.begun:
                MutableHeaders(raw=message["headers"])["connection"] = "close"
            await send(message)

        return send_last


def _is_work(scope: Scope) -> bool:
    return scope["method"] not in _READING and not _ENDING.fullmatch(scope["path"])


async def _read_all(receive: Receive) -> None:
    """Read a body that nobody needs: a connection that is closed on unread data takes the answer with it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_UNREAD_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
