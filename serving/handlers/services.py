"""What every handler works with, and the lookup of a model that can serve a request."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from penstock.scheduler.config import ModelKind
from penstock.scheduler.errors import EngineDeadError, ModelLoadError
from penstock.scheduler.messages import Embed, EmbeddingOutput, ModelLoading, ModelReady

from ..drain import Drain
from ..engine_client import EngineClient
from ..errors import ApiError, JobFailedError, model_not_found, wrong_kind
from ..limits.meter import Meter
from ..metrics import Metrics
from ..principal import Principal
from ..shelf.card import ModelCard
from ..shelf.downloads import Downloads
from ..shelf.lifecycle import Lifecycle
from ..shelf.registry import Registry
from ..store.store import Store
from ..text.served_model import ServedModel
from ..text.threads import TextThreads
from .background import ResponseRuns


@dataclass(frozen=True, slots=True)
class Services:
    """The API process's parts, handed to each handler."""

    engine: EngineClient
    registry: Registry
    lifecycle: Lifecycle
    metrics: Metrics
    store: Store
    runs: ResponseRuns
    downloads: Downloads
    drain: Drain
    meter: Meter
    threads: TextThreads

    async def find(
        self, name: str, kind: ModelKind | None, *, ttl: int | None = None
    ) -> tuple[ServedModel, ModelReady]:
        """The model of a request, of the right kind and resident: it is loaded if it is not yet.

        Args:
            name: as the client wrote it: an id or an alias; an unknown name or "" is the default model's, if
                there is one.
            kind: what the endpoint needs; None: any.
            ttl: seconds that the model stays after its last use, if this request loads it.

        Raises:
            ApiError: 404 unknown or cannot be loaded, 400 of the other kind, 503 no room or loading too long.
            EngineDeadError: the worker is gone.
        """
        card = await self.registry.find(name, kind or "generate")
        if card is None:
            raise self.unknown(name)
        if kind is not None and card.kind != kind:
            raise wrong_kind(name, card.kind, [other.name for other in self.served() if other.kind == kind])
        self.engine.check_alive()
        served = await self.text(card)
        return served, await self.lifecycle.ensure(card, ttl=ttl)

    async def text(self, card: ModelCard) -> ServedModel:
        """The text side of a model.

        Raises:
            ApiError: 404 its files cannot be used.
        """
        try:
            return await self.registry.text(card)
        except ModelLoadError as error:
            raise model_not_found(card.name, self._names(), str(error)) from error

    async def look_up(self, name: str) -> ModelCard:
        """A model that is served, resident or not, by its id or alias.

        Raises:
            ApiError: 404 unknown, or it cannot be loaded.
        """
        card = await self.registry.find(name)
        if card is None:
            raise self.unknown(name)
        if (reason := self.failures().get(card.name)) is not None:
            raise model_not_found(name, self._names(), reason)
        return card

    def served(self) -> list[ModelCard]:
        """The models that have not failed to load; one that only found no room has not."""
        failures = self.failures()
        return [card for card in self.registry.cards() if card.name not in failures]

    def failures(self) -> dict[str, str]:
        """Why models cannot be served, by id."""
        failed = self.engine.failed.items()
        return self.registry.broken | {name: why.message for name, why in failed if why.code != "out_of_memory"}

    async def embed(self, job: Embed, principal: Principal) -> EmbeddingOutput:
        """Run an embedding job, which its principal pays for.

        Raises:
            ApiError: 429, it has reached a limit.
            EngineDeadError: the worker is gone.
            JobFailedError: the worker refused or lost the job.
        """
        num_tokens = sum(map(len, job.inputs))
        await self.meter.admit(principal, num_tokens)
        try:
            return await self.engine.embed(job)
        except (EngineDeadError, JobFailedError):
            self.meter.refund(principal, num_tokens)
            raise

    def load_progress(self, name: str, finding: "asyncio.Future[Any]") -> AsyncGenerator[ModelLoading]:
        """How far a model's loading is, until the task `finding`, which calls `find`, is done."""
        card = self.registry.get(name)
        return self.lifecycle.load_progress(card.name if card else name, finding)

    def unknown(self, name: str) -> ApiError:
        """What a client hears that has named no model that is here."""
        if not name:
            return ApiError(
                f"Missing required parameter: 'model'. Served models: {', '.join(self._names()) or 'none'}.",
                code="missing_required_parameter",
                param="model",
            )
        return model_not_found(name, self._names())

    def _names(self) -> list[str]:
        return [card.name for card in self.served()]
