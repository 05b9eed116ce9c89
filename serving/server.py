"""Run one server from settings to exit status: models on the shelf, device worker, HTTP, and an orderly end.

The order is chosen for a short start. The port is taken first, since a port in use makes everything else pointless.
Then the worker starts, and while it loads, this process imports the web framework and reads the tokenizers. HTTP
answers from then on; requests for a model that is still loading get a 503 that says when to come back.

This process imports neither torch nor transformers.
"""

import asyncio
import dataclasses
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import socket
from types import FrameType
from typing import IO, TYPE_CHECKING, NoReturn

from rich.console import Console

from penstock.scheduler.config import WorkerConfig
from penstock.scheduler.errors import ModelLoadError

from .keys.key_file import KeyFileError
from .server_log import configure_logging, log_file, logging_to
from .settings import Settings, SettingsError
from .shelf.sources import resolve_models
from .supervisor import Supervisor
from .worker_news import WorkerNews

if TYPE_CHECKING:
    from .front import Front, FrontConfig
    from .siblings import Siblings

_log = logging.getLogger(__name__)
_SIGNALLED = 128  # added to a signal's number: the exit status of what a signal has ended, as shells have it
_MAX_SOCKET_PATH = 100  # bytes of a Unix socket's path: the kernels' limits are 107 and 103


def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM.

    Returns:
        Exit status: 0 after a signal, 1 if the port is taken or no model can be served, 2 if other machines would reach
        the server without keys. A second signal ends the process here and now, with 128 and its number.
    """
    configure_logging(settings.log_level)
    # Where nobody watches, lines are as long as they need to be for whoever reads the log.
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 140)
    previous_handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _serve(settings, console)
    except SettingsError as error:
        print(f"penstock serve: error: {error}", file=sys.stderr)
        return 2
    except (ModelLoadError, KeyFileError, OSError) as error:
        print(f"penstock serve: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """SIGTERM before the event loop runs: unwind as Ctrl-C does, so that children and scratch folders go too."""
    raise KeyboardInterrupt


def _serve(settings: Settings, console: Console) -> int:
    from .keys.at_start import check_keys
    from .listener import is_on_loopback, open_listeners

    started_at = time.time()
    with ExitStack() as closing:
        listeners = open_listeners(settings.host, settings.port, settings.api_processes)
        for listener in listeners:
            closing.enter_context(listener)
        on_loopback = is_on_loopback(listeners[0])
        check_keys(settings, on_loopback=on_loopback)
        models = resolve_models(settings.models, settings.home, console)
        if settings.served_model_name:
            models = [dataclasses.replace(model, name=settings.served_model_name) for model in models]
        folder = closing.enter_context(_scratch_folder())
        if settings.api_processes > 1:  # the Prometheus client looks for it when it is imported
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        log = closing.enter_context(logging_to(log_file(settings.home, listeners[0].getsockname()[1])))
        config = WorkerConfig(
            "", settings.engine_config(), tuple(map(settings.model_spec, models)), log_level=settings.log_level
        )
        supervisor = Supervisor(config, folder, log, watchdog_timeout=settings.watchdog_timeout)
        worker = supervisor.start()
        closing.callback(supervisor.stop)
        import uvloop

        from .front import FrontConfig

        front = FrontConfig(settings, models, worker, folder, on_loopback, started_at)
        status = uvloop.run(_Server(front, listeners, supervisor, console, log).run())
        signal.signal(signal.SIGTERM, _interrupt)  # the loop's handler has gone with it
    _log.info("stopped")
    return status


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """For the sockets between the server's processes, which only this user can reach."""
    folder = tempfile.mkdtemp(prefix="penstock-")
    if len(os.fsencode(folder)) + len("/worker-9999.sock") > _MAX_SOCKET_PATH:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="penstock-", dir="/tmp")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Server:
    """The event loop's part: joins worker, API processes and terminal, and ends them in order."""

    def __init__(
        self,
        config: "FrontConfig",
        listeners: list[socket],
        supervisor: Supervisor,
        console: Console,
        log: IO[bytes],
    ) -> None:
        self._config = config
        self._listeners = listeners
        self._supervisor = supervisor
        self._console = console
        self._log = log

    async def run(self) -> int:
        """Serve until a signal comes; returns the exit status."""
        from .front import Front
        from .siblings import Siblings

        siblings = Siblings(self._config, self._listeners[1:], self._log)
        siblings.start()
        front = Front(self._config, self._listeners[0])
        siblings.on_end = front.http.adopt
        stopping = asyncio.Event()

        def stop(signum: int) -> None:
            if stopping.is_set():
                self._end_at_once(signum, front, siblings)
            stopping.set()
            front.drain.begin()
            siblings.stop()

        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, stop, signum)

        def tell(news: WorkerNews) -> None:
            front.engine.take_news(news)
            siblings.tell(news)

        keeping = asyncio.create_task(self._supervisor.keep(front.engine, tell), name="supervisor")
        try:
            await front.start()
            serving = asyncio.create_task(front.http.run_until_stopped(), name="http")
            stopped = asyncio.create_task(stopping.wait(), name="stopped")
            status = await self._announce(front, keeping, stopped)
            if not status:
                await asyncio.wait({stopped, serving, keeping}, return_when=asyncio.FIRST_COMPLETED)
                if keeping.done():  # by a fault of ours: whoever started the server can start a whole one
                    _log.error("nobody looks after the device worker any more", exc_info=keeping.exception())
                    status = 1
                    front.engine.mark_dead("the server is shutting down")
                    front.drain.begin()
                    siblings.stop()
            await front.finish()
            await siblings.finish()
            front.http.stop()
            await serving
            return status
        finally:
            keeping.cancel()
            siblings.kill()
            await front.close()

    def _end_at_once(self, signum: int, front: "Front", siblings: "Siblings") -> NoReturn:
        """End without waiting, but leave no process and no scratch folder; the store is whole at any moment."""
        _log.warning("ended at once by a second signal")
        front.kill()
        siblings.kill()
        self._supervisor.kill()
        shutil.rmtree(self._config.folder, ignore_errors=True)
        self._console.show_cursor()
        os._exit(_SIGNALLED + signum)

    async def _announce(self, front: "Front", keeping: "asyncio.Task[None]", stopped: "asyncio.Task[bool]") -> int:
        """Show progress until all models are ready or failed, then the table; returns 1 if nothing can be served."""
        from .listener import url_of
        from .startup_table import LoadingBars, print_ready

        engine = front.engine
        ready = asyncio.create_task(engine.ready.wait())
        with LoadingBars([model.name for model in self._config.models], self._console) as bars:
            engine.on_progress = lambda: bars.update(engine.loading, engine.models.keys() | engine.failed.keys())
            await asyncio.wait({ready, keeping, stopped}, return_when=asyncio.FIRST_COMPLETED)
            engine.on_progress = None
        if not ready.done():  # a signal came, or no worker can live, which is in the log
            ready.cancel()
            return 1 if keeping.done() else 0
        failures = {name: failed.message for name, failed in engine.failed.items()} | front.broken
        models = {name: engine.models[name] for name in front.texts if name in engine.models}
        if not models:
            for name, reason in failures.items():
                _log.error("%s cannot be served: %s", name, reason)
            return 1
        reach = "this machine" if self._config.on_loopback else "other machines"
        url = url_of(self._listeners[0])
        print_ready(models, failures, url, self._console, reach=reach, needs_key=not front.keys.is_open)
        return 0
