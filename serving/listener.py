"""The HTTP side of the process: the listening socket, and uvicorn told to stop by us instead of by signals."""

import asyncio
import contextlib
import ipaddress
import os
import resource
import socket
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from .http_protocol import GuardedProtocol, HttpLimits

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 75  # longer than the usual proxy's 60, so that it is the proxy that closes idle connections
_KEEP_ALIVE_OPTIONS = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 120_000}
"""Connections whose other end is gone without a word are closed after two minutes; where the system knows these."""
_MAX_FILES = 2**17  # a process that opens more is in trouble anyway
_FILES_FOR_OTHERS = 256  # handles of a process that are not for clients: models, the store, the worker, libraries
_LAST_WORDS_SECONDS = 2  # what answers get to reach their clients when the server ends
_LAST_CALL_SECONDS = 0.1  # what requests get to arrive on connections that are open when the listeners close
_FIRST_CALL_SECONDS = 1.0  # the same where none has come yet: whoever has just connected means to ask


def open_listeners(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """Listen on a port from now on; connections wait in the backlog until the server accepts them.

    Args:
        host: address or name.
        port: 0: any that is free.
        count: sockets, one for each process. Linux spreads new connections over them; elsewhere all of them are one,
            and the process that is free takes the next connection.

    Raises:
        OSError: the address cannot be used; the message says why and what to do.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        first = _watching(socket.create_server(address[:2], family=family, backlog=_BACKLOG))
        if count == 1:
            return [first]
        if sys.platform != "linux":
            return [first, *(first.dup() for _ in range(count - 1))]
        # A port whose sockets may be many would be shared with another server too: only now it is known to be free.
        address = first.getsockname()
        first.close()
        return [
            _watching(socket.create_server(address[:2], family=family, backlog=_BACKLOG, reuse_port=True))
            for _ in range(count)
        ]
    except OSError as error:
        known = error.errno is not None and error.errno > 0  # look-up failures have numbers and words of their own
        reason = (os.strerror(error.errno or 0) if known else str(error.strerror)).lower()
        raise OSError(f"cannot listen on {host} port {port}: {reason}; choose another --port or --host") from error


def is_on_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches the listener."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _watching(listener: socket.socket) -> socket.socket:
    """The listener, whose connections notice that the other end's machine is gone: they have its options."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE_OPTIONS.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return listener


def max_connections() -> int:
    """Connections that this process can have; the limit of its open files is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    room = _MAX_FILES if soft == resource.RLIM_INFINITY else soft
    return max(room - _FILES_FOR_OTHERS, room // 2)


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine reaches the listener."""
    host, port = listener.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


class HttpServer(uvicorn.Server):
    """uvicorn on an open socket, without its signal handlers and without ten wake-ups a second."""

    def __init__(
        self, app: "ASGIApp", listeners: list[socket.socket], *, debug: bool, limits: HttpLimits | None = None
    ) -> None:
        limits = limits or HttpLimits(max_connections=max_connections())
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(type[asyncio.Protocol], partial(GuardedProtocol, limits=limits)),
                ws="none",
                lifespan="off",  # the application has none, and uvicorn's would end in a traceback when it is hurried
                log_config=None,
                access_log=debug,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
                backlog=_BACKLOG,
            )
        )
        self._listeners = listeners
        self._stopping = asyncio.Event()

    async def run_until_stopped(self) -> None:
        """Serve; returns after `stop`, when the answers that are under way have reached their clients."""
        await self.serve(sockets=self._listeners)

    async def adopt(self, listener: socket.socket) -> None:
        """Serve a further socket too."""
        server = await asyncio.get_running_loop().create_server(self._protocol, sock=listener, backlog=_BACKLOG)
        self._listeners.append(listener)
        self.servers.append(server)

    def stop(self) -> None:
        """Accept nothing more and finish."""
        self.should_exit = True
        self._stopping.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners, answer whoever has reached them, and let the connections go.

        A client whose connection was taken by the system, but not by this process, would else see it reset, and so
        would one whose request meets the closing of an idle connection on its way.
        """
        arrived = [connection for listener in self._listeners for connection in _accept_all(listener)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in arrived:
            await loop.connect_accepted_socket(self._protocol, connection)
        deadline = loop.time() + _FIRST_CALL_SECONDS
        await asyncio.sleep(_LAST_CALL_SECONDS)
        connections = cast("set[GuardedProtocol]", self.server_state.connections)
        while loop.time() < deadline and any(connection.cycle is None for connection in connections):
            await asyncio.sleep(_LAST_CALL_SECONDS)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        """A connection's, as uvicorn makes them."""
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(self.config, self.server_state, self.lifespan.state)
        return protocol

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled by the whole process, which has a worker to stop too."""
        yield

    async def main_loop(self) -> None:
        """Sleep until stopped, waking once a second to renew the Date header and to end what is too slow."""
        loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            now = loop.time()
            for connection in list(self.server_state.connections):
                cast(GuardedProtocol, connection).enforce_deadlines(now)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 1.0)


def _accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait in a listener's backlog."""
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            connection, _ = listener.accept()
            yield connection
