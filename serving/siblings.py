"""The further API processes of a server: started by the first one, restarted when one dies, ended with it.

Each has a listening socket of its own, which the first process keeps open: connections that come while a process is
being restarted wait there. The worker cancels the jobs of one that dies.
"""

import asyncio
import logging
import pickle
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from socket import socket
from typing import IO

from .front import FrontConfig
from .worker_news import WorkerNews, WorkerStarted, line_of

_log = logging.getLogger(__name__)
_RESTART_PAUSE = 1.0  # seconds: one that cannot live must not take all processor time
_LAST_WORDS_SECONDS = 5.0  # what a process gets to end after its requests have had their time


class Siblings:
    """All API processes but the first.

    Args:
        config: the first one's.
        listeners: one for each of the others.
        log: takes their lines.

    Attributes:
        on_end: gets the listener of a process that has ended with the server: somebody has to answer whom the system
            sends there.
    """

    def __init__(self, config: FrontConfig, listeners: Sequence[socket], log: IO[bytes]) -> None:
        self._config = config
        self._listeners = listeners
        self._log = log
        self.on_end: Callable[[socket], Awaitable[None]] | None = None
        self._stopping = False
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start them."""
        for index, listener in enumerate(self._listeners, start=1):
            self._tasks.append(asyncio.create_task(self._keep(index, listener), name=f"api process {index}"))

    def stop(self) -> None:
        """Have them finish what is in flight, and start none any more."""
        if not self._stopping:
            self._stopping = True
            for process in self._processes.values():
                with suppress(ProcessLookupError):
                    process.terminate()

    def kill(self) -> None:
        """End them at once."""
        self._stopping = True
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.kill()

    def tell(self, news: WorkerNews) -> None:
        """Tell them of the worker's lives; those that start later hear of the worker of the moment."""
        if isinstance(news, WorkerStarted):
            self._config = replace(self._config, worker=news)
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.write(line_of(news))

    async def finish(self) -> None:
        """Wait for their ends, which are forced when the time is over."""
        self.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._config.settings.drain_timeout + _LAST_WORDS_SECONDS)
        self.kill()
        await asyncio.gather(*self._tasks)

    async def _keep(self, index: int, listener: socket) -> None:
        """Have a process of this index until the server stops."""
        from prometheus_client import multiprocess

        while not self._stopping:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "penstock.serving.api_process"),
                stdin=asyncio.subprocess.PIPE,
                stderr=self._log,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C reaches the first process alone, which stops the others in order
            )
            # Made only now: what was told while the process was being started is in it, what comes later goes to it.
            message = pickle.dumps((replace(self._config, index=index), listener.fileno(), int(listener.family)))
            self._processes[index] = process
            assert process.stdin is not None
            process.stdin.write(len(message).to_bytes(8, "little") + message)
            if self._stopping:
                process.terminate()
            status = await process.wait()
            del self._processes[index]
            multiprocess.mark_process_dead(process.pid)  # type: ignore[no-untyped-call]
            if not self._stopping:
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                _log.error("API process %d (process %d) %s; another one takes its place", index, process.pid, how)
                await asyncio.sleep(_RESTART_PAUSE)
        if self.on_end is not None:
            await self.on_end(listener)
