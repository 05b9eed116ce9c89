"""The lifecycle of models in an API process that does not decide: another one loads for it and unloads what is idle."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from penstock.scheduler.config import ModelSpec
from penstock.scheduler.messages import ModelReady

from ..engine_client import EngineClient
from ..errors import model_loading
from .card import ModelCard
from .lifecycle import MAX_LOAD_WAIT, Lifecycle
from .registry import Registry
from .residency import LoadingPolicy

_WORD_SECONDS = 5.0  # that the worker's own word of a loaded model may come after the other process's


class FollowingLifecycle(Lifecycle):
    """As `Lifecycle`, but its loads are asked for.

    Args:
        engine: the worker; its `make_resident` and `on_use` are taken.
        registry: the models there are.
        spec_of: what the worker is told of a model.
        policy: what may be loaded.
        ask: has a model loaded, by name, with the seconds that it may then be idle; raises ApiError.
    """

    def __init__(
        self,
        engine: EngineClient,
        registry: Registry,
        spec_of: Callable[[ModelCard], ModelSpec],
        policy: LoadingPolicy,
        *,
        ask: Callable[[str, float | None], Awaitable[None]],
    ) -> None:
        super().__init__(engine, registry, spec_of, policy)
        self._ask = ask

    def start(self) -> None:
        """Nothing: the one that decides unloads what is idle."""

    async def ensure(self, card: ModelCard, *, ttl: float | None = None) -> ModelReady:
        """See Lifecycle."""
        if (ready := self._engine.models.get(card.name)) is not None:
            return ready
        with suppress(TimeoutError):  # the other process answers then
            async with asyncio.timeout(MAX_LOAD_WAIT):
                await self._wait_for_start(card.name)
        if (ready := self._engine.models.get(card.name)) is not None:
            return ready
        await self._ask(card.name, ttl)
        with suppress(TimeoutError):
            async with asyncio.timeout(_WORD_SECONDS):
                while card.name not in self._engine.models:
                    await self._engine.next_change()
                    self._engine.check_alive()
        ready = self._engine.models.get(card.name)
        if ready is None:
            raise model_loading(card.name, None)
        return ready
