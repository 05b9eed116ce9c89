"""A further API process of a server, started by its first one, from whose standard input it learns all.

What comes there is the length of a message in 8 bytes and the message, see `siblings`; later what
happens to the worker, in lines, see `worker_news`. The end of the input is the end of the server.
"""

import asyncio
import logging
import os
import pickle
import signal
import socket
import sys

import uvloop

from .front import Front, FrontConfig
from .server_log import configure_logging
from .worker_news import news_of


async def _run(config: FrontConfig, listener: socket.socket) -> None:
    front = Front(config, listener)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    listening = asyncio.create_task(_listen_to_parent(front), name="parent")
    try:
        await front.start()
        serving = asyncio.create_task(front.http.run_until_stopped(), name="http")
        await stopping.wait()
        await front.finish()
        front.http.stop()
        await serving
    finally:
        listening.cancel()
        await front.close()


async def _listen_to_parent(front: Front) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        front.engine.take_news(news_of(line))
    os._exit(1)  # the server was killed; nobody is left to wait for


def _read_exactly(num_bytes: int) -> bytes:
    """Without reading ahead, which would take what is for the event loop."""
    data = b""
    while len(data) < num_bytes and (piece := os.read(sys.stdin.fileno(), num_bytes - len(data))):
        data += piece
    return data


def main() -> None:
    """Serve until SIGTERM, or until the server is gone."""
    config, descriptor, family = pickle.loads(_read_exactly(int.from_bytes(_read_exactly(8), "little")))
    configure_logging(config.settings.log_level)
    logging.getLogger(__name__).debug("API process %d begins", config.index)
    uvloop.run(_run(config, socket.socket(family, socket.SOCK_STREAM, fileno=descriptor)))


if __name__ == "__main__":
    main()
