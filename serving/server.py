"""Run one server from settings to exit status: models on the shelf, device worker, HTTP, and an orderly end.

The order is chosen for a short start. The port is taken first, since a port in use makes everything else pointless.
Then the worker starts, and while it loads, this process imports the web framework and reads the tokenizers. HTTP
answers from then on; requests for a model that is still loading get a 503 that says when to come back.

This process imports neither torch nor transformers.
"""

import asyncio
import dataclasses
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import socket
from types import FrameType
from typing import IO, TYPE_CHECKING

from rich.console import Console

from penstock.scheduler.config import ModelSpec, WorkerConfig
from penstock.scheduler.errors import ModelLoadError
from penstock.scheduler.launch import WorkerProcess, start_worker
from penstock.scheduler.messages import ModelLoading

from .server_log import LINE_FORMAT, log_file, logging_to
from .settings import Settings
from .shelf.card import ModelCard
from .shelf.sources import resolve_models

if TYPE_CHECKING:
    from .engine_client import EngineClient
    from .listener import HttpServer
    from .shelf.registry import Registry
    from .text.served_model import ServedModel

_log = logging.getLogger(__name__)
_MAX_SOCKET_PATH = 100  # bytes of a Unix socket's path: the kernels' limits are 107 and 103


def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM.

    Returns:
        Exit status: 0 after a signal, 1 if the port is taken or no model can be served.
    """
    _configure_logging(settings.log_level)
    # Where nobody watches, lines are as long as they need to be for whoever reads the log.
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 140)
    previous_handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _serve(settings, console)
    except (ModelLoadError, OSError) as error:
        print(f"penstock serve: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """SIGTERM before the event loop runs: unwind as Ctrl-C does, so that children and scratch folders go too."""
    raise KeyboardInterrupt


def _configure_logging(level: str) -> None:
    logging.basicConfig(level=level.upper(), format=LINE_FORMAT, stream=sys.stderr, force=True)
    for noisy in ("uvicorn.error", "httpx", "httpcore", "asyncio"):  # their "info" is our "debug"
        logging.getLogger(noisy).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)


def _serve(settings: Settings, console: Console) -> int:
    from .listener import open_listener

    with open_listener(settings.host, settings.port) as listener:
        models = resolve_models(settings.models, settings.home, console)
        if settings.served_model_name:
            models = [dataclasses.replace(model, name=settings.served_model_name) for model in models]
        file = log_file(settings.home, listener.getsockname()[1])
        with logging_to(file) as worker_log, _running_worker(settings, models, worker_log) as worker:
            import uvloop

            texts, broken = _read_texts(models)
            return uvloop.run(_Server(settings, listener, worker, console, models, texts, broken).run())


@contextmanager
def _running_worker(settings: Settings, models: list[ModelCard], log: IO[bytes]) -> Iterator[WorkerProcess]:
    """The device worker, on a socket that only this user can reach."""
    folder = tempfile.mkdtemp(prefix="penstock-")
    if len(os.fsencode(folder)) + len("/worker.sock") > _MAX_SOCKET_PATH:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="penstock-", dir="/tmp")
    try:
        worker = start_worker(_worker_config(settings, models, f"ipc://{folder}/worker.sock"), stderr=log)
        try:
            yield worker
        finally:
            worker.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _worker_config(settings: Settings, models: list[ModelCard], address: str) -> WorkerConfig:
    specs = tuple(_spec_of(settings, model) for model in models)
    return WorkerConfig(address, settings.engine_config(), specs, settings.log_level)


def _spec_of(settings: Settings, model: ModelCard) -> ModelSpec:
    return ModelSpec(
        name=model.name,
        path=str(model.folder),
        kind=model.kind,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len if model.kind == "generate" else 0,
        trust_remote_code=settings.trust_remote_code,
    )


def _read_texts(models: list[ModelCard]) -> "tuple[dict[str, ServedModel], dict[str, str]]":
    """The text sides of the models named at the start, and why others have none."""
    from .shelf.registry import read_text

    texts, broken = {}, {}
    for model in models:
        try:
            texts[model.name] = read_text(model)
        except ModelLoadError as error:
            broken[model.name] = str(error)
    return texts, broken


class _Server:
    """The event loop's part: joins worker, engine client and HTTP server, and ends them in order."""

    def __init__(
        self,
        settings: Settings,
        listener: socket,
        worker: WorkerProcess,
        console: Console,
        models: list[ModelCard],
        texts: "dict[str, ServedModel]",
        broken: dict[str, str],
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._worker = worker
        self._console = console
        self._models = models
        self._texts = texts
        self._broken = broken

    async def run(self) -> int:
        """Serve until a signal comes; returns the exit status."""
        from .app import create_app
        from .engine_client import EngineClient
        from .handlers.background import ResponseRuns
        from .listener import HttpServer
        from .shelf.downloads import Downloads
        from .shelf.lifecycle import Lifecycle
        from .shelf.registry import Registry
        from .store.database import Database
        from .store.store import open_store

        settings = self._settings
        engine = EngineClient(self._worker.config.address)
        # The worker says so itself as soon as it has imported its libraries; until then they would seem to be unloaded.
        engine.loading = {spec.name: ModelLoading(spec.name, "waiting", 0.0) for spec in self._worker.config.models}
        registry = Registry(
            self._models,
            home=settings.home,
            aliases=settings.alias,
            defaults=settings.default_models(),
            texts=self._texts,
            broken=self._broken,
        )
        lifecycle = Lifecycle(engine, registry, lambda card: _spec_of(settings, card), settings.loading_policy())
        database = Database(
            settings.home / "state.sqlite3",
            max_bytes=settings.store_max_bytes,
            max_age=settings.store_max_age * 24 * 3600,
        )
        downloads = Downloads(settings.home)
        runs = ResponseRuns(open_store(database))
        app = create_app(engine, registry, lifecycle, runs=runs, downloads=downloads)
        http = HttpServer(app, self._listener, grace=settings.shutdown_timeout, debug=settings.log_level == "debug")

        loop = asyncio.get_running_loop()

        def stop() -> None:
            http.stop()
            runs.stop_background()
            loop.call_later(settings.shutdown_timeout, engine.mark_dead, "the server is shutting down")

        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, stop)
        death = asyncio.create_task(_report_death(engine, self._worker, http), name="worker-watch")
        try:
            await engine.start()
            lifecycle.start()
            await _warn_of_unknown_names(registry, settings)
            _calm_garbage_collection()
            serving = asyncio.create_task(http.run_until_stopped(), name="http")
            status = await self._announce(engine, death, serving)
            if status:
                http.stop()
            await serving
            return status
        finally:
            death.cancel()
            await downloads.close()
            await runs.close()
            await engine.close()
            await lifecycle.close()
            await database.close()

    async def _announce(
        self, engine: "EngineClient", death: "asyncio.Task[None]", serving: "asyncio.Task[None]"
    ) -> int:
        """Show progress until all models are ready or failed, then the table; returns 1 if nothing can be served."""
        from .listener import url_of
        from .startup_table import LoadingBars, print_ready

        ready = asyncio.create_task(engine.ready.wait())
        with LoadingBars([model.name for model in self._models], self._console) as bars:
            engine.on_progress = lambda: bars.update(engine.loading, engine.models.keys() | engine.failed.keys())
            await asyncio.wait({ready, death, serving}, return_when=asyncio.FIRST_COMPLETED)
            engine.on_progress = None
        if not ready.done():  # a signal came, or the worker has died, which is in the log
            ready.cancel()
            return 1 if death.done() else 0
        failures = {name: failed.message for name, failed in engine.failed.items()} | self._broken
        models = {name: engine.models[name] for name in self._texts if name in engine.models}
        if not models:
            for name, reason in failures.items():
                _log.error("%s cannot be served: %s", name, reason)
            return 1
        open_to_network = self._settings.host in ("0.0.0.0", "::", "")
        print_ready(models, failures, url_of(self._listener), self._console, open_to_network=open_to_network)
        return 0


def _calm_garbage_collection() -> None:
    """Look for cycles seldom: a step of many streams makes and drops some thousand objects, none of them in a cycle.

    What is here by now stays, and is not looked through any more.
    """
    gc.set_threshold(20_000, 20, 100)
    gc.freeze()


async def _warn_of_unknown_names(registry: "Registry", settings: Settings) -> None:
    """Say which aliases and defaults lead nowhere yet; a model may still come."""
    await registry.refresh()
    wanted = [(f"the alias {alias}", model) for alias, model in settings.alias.items()]
    wanted += [(f"the default model of kind {kind}", model) for kind, model in settings.default_models().items()]
    for what, model in wanted:
        if model and registry.get(model) is None:
            known = ", ".join(card.name for card in registry.cards())
            _log.warning("%s stands for %s, but there is no such model; there are: %s", what, model, known)


async def _report_death(engine: "EngineClient", worker: WorkerProcess, http: "HttpServer") -> None:
    """Wait for the worker's end; every request fails from then on with a 503, those in flight included."""
    status = await _exit_status(worker)
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    engine.mark_dead(how)
    if not http.should_exit:  # else the server is stopping, and nobody needs the advice
        _log.error("the device worker (process %d) %s; restart the server to serve again", worker.pid, how)


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
