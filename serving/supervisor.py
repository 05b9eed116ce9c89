"""Keeps a device worker alive: starts one, and another with the same models whenever it dies or hangs.

The reasons why a worker dies are not known here, only what it did (`penstock.scheduler.flight_record`). Jobs are the
business of those who sent them, and are told to them as suspects. A model whose loading was under way at two deaths is
not loaded again. A worker that dies soon is followed by the next one later and later, but always.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from penstock.scheduler.config import WorkerConfig
from penstock.scheduler.flight_record import Flight, FlightRecord
from penstock.scheduler.launch import WorkerProcess, start_worker

from .worker_news import WorkerLost, WorkerNews, WorkerStarted

if TYPE_CHECKING:
    from .engine_client import EngineClient

_log = logging.getLogger(__name__)

_PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before a new start, by how many workers before it died soon."""
_SOON = 60.0
"""Seconds; a worker that lived for longer was no failure."""
_MAX_LOADING_DEATHS = 2
_HOPELESS_AFTER = 5
"""Workers in a row that died before they were ready."""
_LOOKS = 10
"""At a worker's progress, in the time that it may go without."""
_IMPORT_SECONDS = 300.0
"""What a worker may take at least until its first sign of progress: it reads a gigabyte of libraries."""
_DUMP_SECONDS = 1.0
"""What a hung worker gets to write the stacks of its threads."""


class Supervisor:
    """The device worker's keeper.

    Args:
        config: of the first worker; later ones differ in their models, their address and their record.
        folder: for sockets and records.
        log: takes the workers' lines.
        watchdog_timeout: seconds that a worker may go without progress before it is ended; 0: for ever.
    """

    def __init__(self, config: WorkerConfig, folder: Path, log: IO[bytes], *, watchdog_timeout: float) -> None:
        self._config = config
        self._folder = folder
        self._log = log
        self._watchdog_timeout = watchdog_timeout
        self._generation = 0
        self._num_early_deaths = 0
        self._num_unready = 0
        self._loading_deaths: Counter[str] = Counter()
        self._started_at = 0.0
        self._worker: WorkerProcess
        self._record: FlightRecord

    def start(self) -> WorkerStarted:
        """Start a worker; returns at once.

        Raises:
            OSError: the system refuses it a process or a file.
        """
        record = self._folder / f"flight-{self._generation}"
        address = f"ipc://{self._folder}/worker-{self._generation}.sock"
        self._config = replace(self._config, address=address, flight_record=str(record))
        self._record = FlightRecord(record)
        self._started_at = time.monotonic()
        self._worker = start_worker(self._config, stderr=self._log)
        return WorkerStarted(self._generation, address, str(record))

    def stop(self) -> None:
        """End the worker in order."""
        self._worker.stop()

    def kill(self) -> None:
        """End the worker at once."""
        self._worker.process.kill()

    async def keep(self, engine: "EngineClient", tell: Callable[[WorkerNews], None]) -> None:
        """Start another worker whenever one ends; returns only if the very first one fails by itself.

        Args:
            engine: knows which models another worker is to begin with, and whether this one got ready.
            tell: what happens.
        """
        was_ever_ready = False
        while True:
            how = await self._end_of_worker()
            flight = self._record.read()
            self._record.close()
            was_ever_ready |= engine.ready.is_set()
            if not (was_ever_ready or flight.loading):
                tell(WorkerLost(how, is_hopeless=True))
                _log.error("the device worker (process %d) %s before it could load anything", self._worker.pid, how)
                return
            pause = self._note_death(is_ready=engine.ready.is_set())
            failed = self._blame_model(flight, how)
            wanted = tuple(spec for spec in engine.wanted_specs() if spec.name not in failed)
            self._report(how, flight, pause)
            suspects = flight.job_ids | flight.admitted_ids
            is_hopeless = self._num_unready >= _HOPELESS_AFTER
            tell(WorkerLost(how, suspects, bool(flight.loading), failed, is_hopeless))
            self._worker.stop()  # closes its standard input
            self._forget_files()
            await asyncio.sleep(pause)
            self._generation += 1
            self._config = replace(self._config, models=wanted)
            tell(await self._start_another(tell))

    async def _start_another(self, tell: Callable[[WorkerNews], None]) -> WorkerStarted:
        """Start a worker, as soon as the system allows it: its disk may be full, or there may be too many processes."""
        while True:
            try:
                return self.start()
            except OSError as error:
                pause = _PAUSES[-1]
                _log.error("no device worker can be started: %s; the next attempt is in %.0f s", error, pause)
                tell(WorkerLost(f"could not be started again: {error}", is_hopeless=True))
                await asyncio.sleep(pause)

    def _note_death(self, *, is_ready: bool) -> float:
        """Count a death; returns the seconds until the next start."""
        if time.monotonic() - self._started_at > _SOON:
            self._num_early_deaths = 0
        self._num_unready = 0 if is_ready else self._num_unready + 1
        if is_ready:
            self._loading_deaths.clear()
        pause = _PAUSES[min(self._num_early_deaths, len(_PAUSES) - 1)]
        self._num_early_deaths += 1
        return pause

    def _blame_model(self, flight: Flight, how: str) -> dict[str, str]:
        """The model that is not loaded again, if there is one, and why."""
        if not flight.loading:
            return {}
        self._loading_deaths[flight.loading] += 1
        if self._loading_deaths[flight.loading] < _MAX_LOADING_DEATHS:
            return {}
        del self._loading_deaths[flight.loading]
        return {flight.loading: f"the device worker {how} while it loaded the model, {_MAX_LOADING_DEATHS} times"}

    def _report(self, how: str, flight: Flight, pause: float) -> None:
        doing = f"computing {len(flight.job_ids)} jobs" if flight.job_ids else "between two steps"
        if flight.loading:
            doing += f" and loading {flight.loading}"
        when = f"in {pause:.0f} s" if pause else "now"
        pid = self._worker.pid
        _log.error("the device worker (process %d) %s while %s; another one starts %s", pid, how, doing, when)
        if self._num_unready >= _HOPELESS_AFTER:
            _log.error("%d workers in a row did not get ready: requests are refused meanwhile", self._num_unready)

    def _forget_files(self) -> None:
        """Remove what the dead worker leaves; the API processes may still have it open."""
        for name in (f"flight-{self._generation}", f"worker-{self._generation}.sock"):
            (self._folder / name).unlink(missing_ok=True)

    async def _end_of_worker(self) -> str:
        """Wait for the worker's end, and bring it about if the worker hangs; returns how it ended."""
        hanging = asyncio.create_task(self._end_if_it_hangs(), name="worker-watchdog")
        try:
            status = await _exit_status(self._worker)
        finally:
            hanging.cancel()
        if hanging.done() and not hanging.cancelled():
            return f"was ended after {self._watchdog_timeout:g} s without progress"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"

    async def _end_if_it_hangs(self) -> None:
        """End the worker once it makes no progress. Looks are counted, not seconds: this process may be stopped too."""
        if not self._watchdog_timeout:
            await asyncio.get_running_loop().create_future()
        interval = self._watchdog_timeout / _LOOKS
        num_beats = num_still = 0
        while num_still < (_LOOKS if num_beats else max(_LOOKS, _IMPORT_SECONDS / interval)):
            await asyncio.sleep(interval)
            beats = self._record.read().num_beats
            num_still = num_still + 1 if beats == num_beats else 0
            num_beats = beats
        flight = self._record.read()
        _log.error(
            "the device worker (process %d) has made no progress for %g s, in step %d with %d jobs; it is told to "
            "write the stacks of its threads, and killed",
            *(self._worker.pid, self._watchdog_timeout, flight.num_steps, len(flight.job_ids)),
        )
        with suppress(ProcessLookupError):
            os.kill(self._worker.pid, signal.SIGUSR1)
            await asyncio.sleep(_DUMP_SECONDS)
            self.kill()


async def _exit_status(worker: WorkerProcess) -> int:
    """The worker's exit status, from a thread that sleeps in the kernel until then."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def resolve(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    def wait() -> None:
        status = worker.process.wait()
        with suppress(RuntimeError):  # the loop has ended, and with it the interest
            loop.call_soon_threadsafe(resolve, status)

    threading.Thread(target=wait, name="worker-watch", daemon=True).start()
    return await ended
