"""One API process: its parts put together, and started and ended in order."""

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from socket import socket

from starlette.types import ASGIApp

from penstock.scheduler.errors import ModelLoadError

from .app import create_app
from .drain import Drain
from .engine_client import EngineClient
from .handlers.background import ResponseRuns
from .handlers.responses.resuming import Resumption
from .keys.doorkeeper import Doorkeeper
from .keys.key_file import KEY_FILE, KeyFile
from .keys.ring import KeyRing
from .limits.ledger import LEDGER_FOLDER, Ledger
from .limits.meter import Meter
from .listener import HttpServer
from .neighbours import Neighbours
from .settings import Settings
from .shelf.card import ModelCard
from .shelf.downloads import Downloads
from .shelf.following import FollowingLifecycle
from .shelf.lifecycle import Lifecycle
from .shelf.registry import Registry, read_text
from .store.database import Database
from .store.store import open_store
from .store.turns import TurnLocks
from .text.served_model import ServedModel
from .worker_news import WorkerStarted

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """What an API process is told."""

    settings: Settings
    models: list[ModelCard]
    worker: WorkerStarted
    """The device worker of the moment."""
    folder: Path
    """For the sockets through which the API processes reach each other."""
    on_loopback: bool
    """Only this machine reaches the server."""
    started_at: float
    """Unix seconds."""
    index: int = 0
    """Among the API processes; the first one decides about models."""


class Front:
    """One API process; make it in its event loop.

    Args:
        config: what it is told.
        listener: takes its connections.

    Attributes:
        texts: the text sides of the models named at the start.
        broken: why others of them have none.
        keys: the API keys.
    """

    def __init__(self, config: FrontConfig, listener: socket) -> None:
        self.config = config
        settings = config.settings
        self.texts, self.broken = read_texts(config.models)
        self.engine = EngineClient(config.worker, map(settings.model_spec, config.models))
        self.registry = Registry(
            config.models,
            home=settings.home,
            aliases=settings.alias,
            defaults=settings.default_models(),
            texts=self.texts,
            broken=self.broken,
        )
        self._database = Database(
            settings.home / "state.sqlite3",
            max_bytes=settings.store_max_bytes,
            max_age=settings.store_max_age * 24 * 3600,
        )
        self.keys = KeyRing(KeyFile(settings.home / KEY_FILE), no_auth=not settings.auth, since=config.started_at)
        self._doorkeeper = Doorkeeper(self.keys, refuses_pages=config.on_loopback and settings.auth)
        self._downloads = Downloads(settings.home)
        self._meter = Meter(Ledger(settings.home / LEDGER_FOLDER))
        self._runs = ResponseRuns(open_store(self._database), TurnLocks(settings.home / "turns.lock"))
        name = f"API process {config.index}" if settings.api_processes > 1 else ""
        self.drain = Drain(settings.drain_timeout, name)
        self.drain.num_background = lambda: self._runs.num_background
        self._neighbours = Neighbours(config.folder, config.index, settings.api_processes)
        self._lifecycle = self._make_lifecycle()
        api = create_app(
            self.engine,
            self.registry,
            self._lifecycle,
            runs=self._runs,
            downloads=self._downloads,
            meter=self._meter,
            drain=self.drain,
            identify=self._doorkeeper.identify,
            counts_steps=config.index == 0,
        )
        self._resumption = Resumption(api.state.services, self.keys.find_by_id)
        app: ASGIApp = api
        listeners = [listener]
        if settings.api_processes > 1:
            app = self._neighbours.joined(app, self._runs, self._ensure, self._doorkeeper.identify, self.drain)
            listeners.append(self._neighbours.listen())
        self.http = HttpServer(app, listeners, debug=settings.log_level == "debug")

    def _make_lifecycle(self) -> Lifecycle:
        settings = self.config.settings
        policy = settings.loading_policy()
        if self.config.index:
            ask = self._neighbours.ask_for_model
            return FollowingLifecycle(self.engine, self.registry, settings.model_spec, policy, ask=ask)
        return Lifecycle(self.engine, self.registry, settings.model_spec, policy)

    async def _ensure(self, name: str, ttl: float | None) -> None:
        """Load a model that a request of another API process needs."""
        await self.registry.refresh()
        if (card := self.registry.get(name)) is not None:
            await self._lifecycle.ensure(card, ttl=ttl)

    async def start(self) -> None:
        """Connect to the worker; HTTP may be served then."""
        await self.engine.start()
        self._lifecycle.start()
        self.keys.start()
        self._resumption.start()
        await self._warn_of_unknown_names()
        _calm_garbage_collection()

    async def finish(self) -> None:
        """Take no new work and let what runs finish, which is told when its time is over; HTTP is served meanwhile."""
        if not await self.drain.wait():
            self._runs.stop_background()
            self.engine.mark_dead("the server is shutting down")

    def kill(self) -> None:
        """End the processes that this one has started; it is about to end itself."""
        self._downloads.kill()

    async def close(self) -> None:
        """Let everything go."""
        await self._downloads.close()
        await self._resumption.close()
        await self._runs.close()
        await self.engine.close()
        await self._lifecycle.close()
        await self._neighbours.close()
        await self._meter.close()
        await self._database.close()
        self.keys.close()

    async def _warn_of_unknown_names(self) -> None:
        """Say which aliases and defaults lead nowhere yet; a model may still come."""
        settings = self.config.settings
        await self.registry.refresh()
        wanted = [(f"the alias {alias}", model) for alias, model in settings.alias.items()]
        wanted += [(f"the default model of kind {kind}", model) for kind, model in settings.default_models().items()]
        for what, model in wanted:
            if self.config.index == 0 and model and self.registry.get(model) is None:
                known = ", ".join(card.name for card in self.registry.cards())
                _log.warning("%s stands for %s, but there is no such model; there are: %s", what, model, known)


def read_texts(models: list[ModelCard]) -> tuple[dict[str, ServedModel], dict[str, str]]:
    """The text sides of the models named at the start, and why others have none."""
    texts, broken = {}, {}
    for model in models:
        try:
            texts[model.name] = read_text(model)
        except ModelLoadError as error:
            broken[model.name] = str(error)
    return texts, broken


def _calm_garbage_collection() -> None:
    """Look for cycles seldom: a step of many streams makes and drops some thousand objects, none of them in a cycle.

    What is here by now stays, and is not looked through any more.
    """
    gc.set_threshold(20_000, 20, 100)
    gc.freeze()
