"""uvicorn's HTTP/1.1 connection with bounds: on what it may send, how slow it may be, and how many there are.

uvicorn waits for ever for the rest of a header or a body, and for a client to read. Here a connection is looked at once
a second (`enforce_deadlines`), which costs requests no timers.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .error_forms import form_of
from .errors import ApiError

if TYPE_CHECKING:
    import asyncio

    from starlette.types import Scope


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What a connection may do; sizes in bytes, times in seconds."""

    max_connections: int = 10_000
    """Of one process at once."""
    max_header_bytes: int = 64 * 1024
    """Of the request line and all header fields together."""
    max_header_fields: int = 100
    max_url_bytes: int = 16 * 1024
    max_pipelined: int = 64
    """Requests that wait on a connection for the answers to those before them."""
    header_timeout: float = 20.0
    """From a connection's beginning, or a header's first byte, to the header's end."""
    body_grace: float = 30.0
    min_body_rate: float = 16 * 1024
    """Bytes a second, on average, of a body that has taken longer than `body_grace`."""
    write_timeout: float = 30.0
    """A client that has not taken all but a little of what waits for it after that is cut off, unless it reads at"""
    min_read_rate: float = 16 * 1024
    """bytes a second, on average: a large answer may take long."""
    linger: float = 2.0
    """What a refused client may still send is read for that long: it would else see a reset instead of the refusal."""
    max_lingering: int = 100
    """Connections beyond `max_connections` that linger; more are dropped without a word."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        limits: what it may do.
        arguments: see `HttpToolsProtocol`.
    """

    def __init__(self, *arguments: Any, limits: HttpLimits, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.limits = limits
        self._running: RequestResponseCycle | None = None
        self._refused_at: float | None = None
        self._header_began: float | None = None
        self._header_bytes = 0  # of pieces that have ended within the header
        self._num_bytes = 0  # of fields that are complete, and of the URL
        self._body_began: float | None = None
        self._body_bytes = 0
        self._stuck_since: float | None = None
        self._stuck_bytes = 0  # that waited for the client then

    def connection_made(self, transport: "asyncio.Transport") -> None:  # type: ignore[override]
        """Take the connection, or refuse it if there are too many."""
        super().connection_made(transport)
        self._header_began = self.loop.time()
        num_too_many = len(self.connections) - self.limits.max_connections
        if num_too_many > self.limits.max_lingering:
            transport.abort()
        elif num_too_many > 0 and not self._displace():
            self._refuse(
                ApiError(
                    f"The server has {self.limits.max_connections} connections open, the most it can have. Close idle "
                    "ones, or try again later.",
                    status=503,
                    code="too_many_connections",
                )
            )

    def _displace(self) -> bool:
        """Close an idle connection of the address that has the most, unless that is this one's."""
        others = [cast(GuardedProtocol, connection) for connection in self.connections]
        counts = Counter(other.address for other in others)
        greediest, num_connections = counts.most_common(1)[0]
        if num_connections <= counts[self.address]:
            return False
        idle = next((other for other in others if other.address == greediest and other.is_idle), None)
        if idle is not None:
            idle.transport.abort()
        return idle is not None

    @property
    def address(self) -> str:
        """The client's, without its port."""
        return self.client[0] if self.client else ""

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress or being sent."""
        return self._body_began is None and self._running is None

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        super().connection_lost(exc)
        self._disconnect_running()  # uvicorn tells the newest request only

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """The answer is out."""
        self._running = None
        super().on_response_complete()

    def _disconnect_running(self) -> None:
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        if self._refused_at is not None:
            return  # what comes now was sent before the client saw the refusal
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # HTTP/1.1 goes on, as the protocol's rules have it for servers that know no other
        except httptools.HttpParserCallbackError as error:
            self._refuse(error.__context__ if isinstance(error.__context__, ApiError) else _invalid())
        except httptools.HttpParserError:
            self._refuse(_invalid())
        else:
            # The parser collects a field that has no end.
            if self._header_began is not None:
                self._header_bytes += len(data)
                if self._header_bytes > self.limits.max_header_bytes:
                    self._refuse(self._header_too_large())

    def on_message_begin(self) -> None:
        """A request begins."""
        self._unset_keepalive_if_required()  # not before: empty lines would keep a connection for ever
        super().on_message_begin()
        self._header_began = self.loop.time()
        self._header_bytes = self._num_bytes = 0
        if len(self.pipeline) >= self.limits.max_pipelined:
            raise _invalid()

    def on_url(self, url: bytes) -> None:
        """A piece of the request's URL."""
        super().on_url(url)
        if len(self.url) > self.limits.max_url_bytes:
            raise ApiError(
                f"The URL is longer than {self.limits.max_url_bytes} bytes. Send a shorter one.",
                status=414,
                code="uri_too_long",
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """A complete field; those behind a body are dropped, since nobody would look at them as at a header's."""
        if self._header_began is None:
            return
        super().on_header(name, value)
        self._num_bytes += len(name) + len(value)
        if (
            len(self.headers) > self.limits.max_header_fields
            or self._num_bytes + len(self.url) > self.limits.max_header_bytes
        ):
            raise self._header_too_large()

    def on_headers_complete(self) -> None:
        """The request can be answered."""
        self._header_began = None
        self._body_began, self._body_bytes = self.loop.time(), 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is here."""
        self._body_began = None
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        self._stuck_since, self._stuck_bytes = self.loop.time(), self.transport.get_write_buffer_size()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has read most of it."""
        self._stuck_since = None
        super().resume_writing()

    def enforce_deadlines(self, now: float) -> None:
        """End the connection if the client is too slow; `now` is the event loop's time."""
        limits = self.limits
        if self._refused_at is not None:
            if now - self._refused_at > limits.linger:
                self.transport.abort()
        elif self._stuck_since is not None and now - self._stuck_since > limits.write_timeout:
            self._enforce_read_rate(now - self._stuck_since, now)
        elif self._header_began is not None and now - self._header_began > limits.header_timeout:
            if self._header_bytes:
                self._refuse(_too_slow(f"The request's header was not complete after {limits.header_timeout:g} s."))
            else:
                self.transport.close()
        elif self._body_began is not None:
            self._enforce_body_rate(now - self._body_began, now)

    def _enforce_read_rate(self, seconds: float, now: float) -> None:
        num_waiting = self.transport.get_write_buffer_size()
        if self._stuck_bytes - num_waiting < seconds * self.limits.min_read_rate:
            self.transport.abort()
        self._stuck_since, self._stuck_bytes = now, num_waiting

    def _enforce_body_rate(self, seconds: float, now: float) -> None:
        limits = self.limits
        if self.flow.read_paused:  # it is the application that is slow
            self._body_began, self._body_bytes = now, 0
        elif self._body_bytes < (seconds - limits.body_grace) * limits.min_body_rate:
            self._refuse(
                _too_slow(
                    f"Of the request's body came {self._body_bytes} bytes in {seconds:.0f} s, less than "
                    f"{limits.min_body_rate:g} bytes a second."
                )
            )

    def _header_too_large(self) -> ApiError:
        return ApiError(
            f"The request's header is larger than {self.limits.max_header_bytes} bytes, or has more than "
            f"{self.limits.max_header_fields} fields. Send less.",
            status=431,
            code="header_too_large",
        )

    def _refuse(self, error: ApiError) -> None:
        """Answer in place of the application, unless that would be taken for the answer to another request; and close.

        The end is seen by the client, and by `enforce_deadlines` if the client does not go.
        """
        running, its_own = self._running, self._body_began is not None and not self.pipeline
        may_answer = not its_own if running is None else its_own and not running.response_started
        if may_answer:
            self.transport.write(_answer(error, self._scope()))
        self._disconnect_running()
        self._refused_at = self.loop.time()
        self._header_began = self._body_began = None
        self.pipeline.clear()
        self.flow.resume_reading()
        self.transport.write_eof()

    def _scope(self) -> "Scope":
        """What is known of the request, for the form of its error."""
        return {"path": "/", "headers": [], **(self.scope or {})}


def _answer(error: ApiError, scope: "Scope") -> bytes:
    body = form_of(scope).body(error, scope)
    fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in {**error.headers, **fields}.items())
    return f"HTTP/1.1 {error.status} {_phrase(error.status)}\r\n{head}\r\n".encode("latin-1") + body


@lru_cache
def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase


def _too_slow(what: str) -> ApiError:
    return ApiError(f"{what} Send it faster.", status=408, code="request_timeout")


def _invalid() -> ApiError:
    return ApiError("The request is not valid HTTP/1.1. Send one as RFC 9112 has it.", code="invalid_http")
