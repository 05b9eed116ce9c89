"""The scripted front behind a real HTTP server, for clients that need a port."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fake_engine import Front, until


@asynccontextmanager
async def listening(front: Front, port: int = 0) -> AsyncIterator[str]:
    """The base URL, with /v1, at which the front answers.

    Raises:
        OSError: the port is taken.
    """
    with socket.create_server(("127.0.0.1", port)) as listener:
        config = uvicorn.Config(front.app, log_level="warning", http="httptools", lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        await until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            await serving
