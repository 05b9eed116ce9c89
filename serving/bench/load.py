"""One client process's share of the load: sends its requests in a closed or an open loop and keeps their records."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count, islice

from .client import Client, Record
from .settings import BenchSettings
from .workload import Phase, Workload

_PROGRESS_SECONDS = 0.25
_WARMUP_CONCURRENCY = 8  # of an open loop, which has no concurrency of its own


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a process is."""

    num_done: int
    num_failed: int
    output_tokens: int
    num_in_flight: int


class Load:
    """Every `settings.processes`-th request of the run, from the `process_index`-th on."""

    def __init__(self, settings: BenchSettings, workload: Workload, client: Client, process_index: int) -> None:
        self._settings = settings
        self._workload = workload
        self._client = client
        self._process_index = process_index
        self._records: list[Record] = []
        self._num_started = 0

    async def warm_up(self) -> None:
        """Send this process's part of the warm-up; what becomes of it does not matter."""
        indices = range(self._process_index, self._settings.warmup, self._settings.processes)
        await self._closed_loop(iter(indices), "warmup")
        self._records.clear()
        self._num_started = 0

    async def run(self, start: float, report: Callable[[Progress], None]) -> list[Record]:
        """Send the measured requests from `start` (monotonic seconds) on.

        Args:
            start: when the run begins, the same in every process.
            report: called a few times a second.

        Returns:
            The record of every request, in the order of their ends.
        """
        settings = self._settings
        every: Iterable[int] = range(settings.num_requests) if settings.num_requests else count()
        mine = islice(every, self._process_index, None, settings.processes)
        await asyncio.sleep(start - time.monotonic())
        async with self._reporting(report):
            if settings.concurrency:
                await self._closed_loop(self._until(start, mine), "measured")
            else:
                await self._open_loop(start, mine)
        return self._records

    def _until(self, start: float, indices: Iterable[int]) -> Iterator[int]:
        """`indices` as long as new requests may be started."""
        duration = self._settings.duration
        for index in indices:
            if duration and time.monotonic() >= start + duration:
                return
            yield index

    async def _closed_loop(self, indices: Iterator[int], phase: Phase) -> None:
        """Keep this process's share of the concurrency busy until `indices` end."""

        async def send_one_after_another() -> None:
            for index in indices:  # shared by all slots
                await self._send(index, phase)

        total, processes = self._settings.concurrency or _WARMUP_CONCURRENCY, self._settings.processes
        share = total // processes + (self._process_index < total % processes)
        async with asyncio.TaskGroup() as slots:
            for _ in range(share):
                slots.create_task(send_one_after_another())

    async def _open_loop(self, start: float, indices: Iterable[int]) -> None:
        """Send each request at its arrival time, whatever has become of the others."""
        settings = self._settings
        arrivals = islice(self._workload.arrivals(), self._process_index, None, settings.processes)
        async with asyncio.TaskGroup() as requests:
            for index, arrival in zip(indices, arrivals, strict=False):
                if settings.duration and arrival >= settings.duration:
                    break
                await asyncio.sleep(max(0.0, start + arrival - time.monotonic()))
                requests.create_task(self._send(index, "measured"))

    async def _send(self, index: int, phase: Phase) -> None:
        self._num_started += 1
        self._records.append(await self._client.send(self._workload.request(index, phase)))

    @asynccontextmanager
    async def _reporting(self, report: Callable[[Progress], None]) -> AsyncIterator[None]:
        async def report_regularly() -> None:
            num_seen = num_failed = output_tokens = 0
            while True:
                for record in self._records[num_seen:]:
                    num_failed += record.error is not None
                    output_tokens += record.output_tokens
                num_seen = len(self._records)
                report(Progress(num_seen, num_failed, output_tokens, self._num_started - num_seen))
                await asyncio.sleep(_PROGRESS_SECONDS)

        async with asyncio.TaskGroup() as group:  # so that a report that cannot be made ends the load
            task = group.create_task(report_regularly())
            yield
            task.cancel()
