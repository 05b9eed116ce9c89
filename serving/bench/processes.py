"""Starts the client processes, lets them begin together, and brings their records home.

The parent sends nothing itself, even when there is only one client process: so drawing the progress bar never
delays the reading of a token.
"""

import asyncio
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import uvloop

from .client import Client, Record
from .load import Load, Progress
from .prompts import WordCost
from .settings import BenchSettings, EndpointName
from .workload import Workload

_START_DELAY = 0.05  # seconds for the start time to reach every process before it comes


@dataclass(frozen=True, slots=True)
class RunResult:
    """Records of all processes."""

    start: float
    """Monotonic seconds."""
    records: list[Record]
    client_load: float
    """CPU seconds per second that the busiest client process used; near 1 the client was the bottleneck."""


@dataclass(frozen=True, slots=True)
class _Finished:
    records: list[Record]
    client_load: float


class ClientProcessError(Exception):
    """A client process died; what it measured is lost."""


def run_processes(
    settings: BenchSettings,
    costs: dict[EndpointName, WordCost],
    on_start: Callable[[], None],
    on_progress: Callable[[Progress], None],
) -> RunResult:
    """Run the whole load and return when its last request has ended.

    Args:
        settings: the run.
        costs: what calibration found.
        on_start: called when warm-up is over.
        on_progress: called with the sum over all processes whenever one of them reports.

    Raises:
        ClientProcessError: a client process died.
    """
    with _children(settings, costs) as connections:
        for connection in connections:
            _receive(connection)  # ready: it is warm
        start = time.monotonic() + _START_DELAY
        for connection in connections:
            connection.send(start)
        on_start()
        finished = _collect(connections, on_progress)
    return RunResult(
        start=start,
        records=[record for part in finished for record in part.records],
        client_load=max(part.client_load for part in finished),
    )


@contextmanager
def _children(settings: BenchSettings, costs: dict[EndpointName, WordCost]) -> Iterator[list[Connection]]:
    """The parent's ends of the pipes to started processes, which are gone when the context ends."""
    context = multiprocessing.get_context("spawn")  # fork would copy this process's event loop and threads
    processes, connections = [], []
    try:
        for index in range(settings.processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_child, args=(settings, costs, index, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the child's death reads as the end of the pipe
            processes.append(process)
            connections.append(ours)
        yield connections
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
            process.join()
            process.close()
        for connection in connections:
            connection.close()


def _collect(connections: list[Connection], on_progress: Callable[[Progress], None]) -> list[_Finished]:
    latest = {connection: Progress(0, 0, 0, 0) for connection in connections}
    finished: list[_Finished] = []
    running = list(connections)
    while running:
        ready = wait(running)
        for connection in [candidate for candidate in running if candidate in ready]:
            message = _receive(connection)
            if isinstance(message, _Finished):
                finished.append(message)
                running.remove(connection)
                continue
            latest[connection] = message
            on_progress(_sum(latest.values()))
    return finished


def _sum(parts: Iterable[Progress]) -> Progress:
    parts = list(parts)
    return Progress(
        num_done=sum(part.num_done for part in parts),
        num_failed=sum(part.num_failed for part in parts),
        output_tokens=sum(part.output_tokens for part in parts),
        num_in_flight=sum(part.num_in_flight for part in parts),
    )


def _receive(connection: Connection) -> Any:
    try:
        return connection.recv()
    except EOFError:
        raise ClientProcessError("a client process died, and what it measured is lost: run again") from None


def _child(settings: BenchSettings, costs: dict[EndpointName, WordCost], index: int, connection: Connection) -> None:
    """Body of a client process: warm up, say so, wait for the start time, run, hand the records over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business

    async def run() -> None:
        async with Client(settings) as client:
            load = Load(settings, Workload(settings, costs), client, index)
            await load.warm_up()
            connection.send("ready")
            start = connection.recv()  # blocks the loop, which has nothing else to do yet
            cpu_before = time.process_time()
            records = await load.run(start, connection.send)
            elapsed = time.monotonic() - start
            connection.send(_Finished(records, (time.process_time() - cpu_before) / elapsed))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(run())
        except* BrokenPipeError:
            pass  # the parent is gone, and nobody is left to load the server for
