"""The socket to the device worker of the moment: messages up, messages down, and the change to another worker."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import zmq
import zmq.asyncio

from penstock.scheduler.messages import DownMessage, Hello, UpMessage, decode, encode

_log = logging.getLogger(__name__)


class WorkerLink:
    """A connection to one worker at a time.

    Args:
        deliver: gets every message of the worker.
    """

    def __init__(self, deliver: Callable[[DownMessage], None]) -> None:
        self._deliver = deliver
        self._context: zmq.asyncio.Context | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a worker to send to, which may not listen yet."""
        return self._socket is not None

    def connect(self, address: str) -> None:
        """Connect to a worker, which may bind its address later, and ask for the state of every model."""
        self.disconnect()
        self._context = self._context or zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # jobs are bounded by the HTTP side; a full queue would lose a cancel
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)
        self._reader = asyncio.create_task(self._read(self._socket), name="engine-client")
        self.send(Hello())

    def disconnect(self) -> None:
        """Hear nothing more of the worker; what it has sent and nobody has read is dropped."""
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, message: UpMessage) -> None:
        """Hand a message to ZeroMQ, which never blocks here: the queue has no limit."""
        assert self._socket is not None, "there is no worker to send to"
        sent = asyncio.ensure_future(self._socket.send_multipart(encode(message)))
        sent.add_done_callback(_log_failure)

    async def close(self) -> None:
        """Disconnect for good."""
        reader = self._reader
        self.disconnect()
        if reader is not None:
            await asyncio.gather(reader, return_exceptions=True)
        if self._context is not None:
            self._context.term()

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            try:
                self._deliver(decode(frames))  # type: ignore[arg-type]  # a worker sends nothing else
            except Exception:  # one bad message may not silence all the others
                _log.exception("a message of the device worker could not be delivered")


def _log_failure(sent: "asyncio.Future[Any]") -> None:
    if not sent.cancelled() and (error := sent.exception()) is not None:
        _log.error("a message to the device worker was not sent: %s", error)
