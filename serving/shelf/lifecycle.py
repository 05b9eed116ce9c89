"""When models come and go: loaded by the first request, unloaded when idle for long or when another needs their room.

A model that was named at the start or loaded by hand stays until someone unloads it. One that a request has loaded goes
when it was idle for its TTL, or earlier if another model needs its room; never while it has jobs. However many requests
want a model, it is loaded once, and a client that goes away stops only its own waiting. Loads take place one after
the other, since each decides about the room that is left.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from penstock.scheduler.config import ModelSpec
from penstock.scheduler.errors import EngineDeadError
from penstock.scheduler.messages import ModelLoading, ModelReady

from ..engine_client import EngineClient, ModelFailedError
from ..errors import model_busy, model_loading, model_not_found, model_not_loaded, no_room_for_model
from .card import ModelCard
from .registry import Registry
from .residency import LoadingPolicy, Resident, Stay

_log = logging.getLogger(__name__)

MAX_LOAD_WAIT = 900.0
"""Seconds that a request waits for its model."""
FIRST_USE_SECONDS = 2.0
"""A model that a request has just asked for is not evicted for this long: the request's job is about to be sent."""
_FIRST_RETRY_SECONDS = 5.0
_LAST_RETRY_SECONDS = 320.0


@dataclass(slots=True)
class _Failure:
    """Why a model could not be loaded, and when it may be tried again."""

    error: ModelFailedError
    retry_at: float
    pause: float


class Lifecycle:
    """Loads and unloads the models of one worker.

    Args:
        engine: the worker; its `make_resident` and `on_use` are taken.
        registry: the models there are.
        spec_of: what the worker is told of a model.
        policy: what may be loaded, and for how long.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        engine: EngineClient,
        registry: Registry,
        spec_of: Callable[[ModelCard], ModelSpec],
        policy: LoadingPolicy,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._spec_of = spec_of
        self.policy = policy
        self._clock = clock
        self._stays: dict[str, Stay] = {}
        self._failures: dict[str, _Failure] = {}
        self._loads: dict[str, asyncio.Task[ModelReady]] = {}
        self._unloading: dict[str, asyncio.Future[bool]] = {}
        self._one_load = asyncio.Lock()
        self._new_deadline = asyncio.Event()
        self._reaper: asyncio.Task[None] | None = None
        engine.make_resident = self._make_resident
        engine.on_use = self._note_use

    def start(self) -> None:
        """Begin to unload models that are idle."""
        self._reaper = asyncio.create_task(self._reap(), name="idle-models")

    async def close(self) -> None:
        """Stop; loads that are under way end with the engine client."""
        tasks = [*self._loads.values(), *([self._reaper] if self._reaper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---------------------------------------------------------------------------------------------------- for requests

    async def ensure(self, card: ModelCard, *, ttl: float | None = None) -> ModelReady:
        """The resident model of a request, loaded first if need be.

        Args:
            card: which.
            ttl: seconds of idleness that it is granted, if this call loads it; None: what the policy says.

        Raises:
            ApiError: 404 it cannot be loaded, or may not be; 503 there is no room, or loading takes too long.
            EngineDeadError: the worker is gone.
        """
        ready = self._engine.models.get(card.name)
        if ready is None:
            ready = await self._wait_for(card, lambda: self._load_for_request(card, ttl))
        stay = self._stay(card.name)
        stay.last_used = self._clock()
        stay.expected_until = stay.last_used + FIRST_USE_SECONDS
        return ready

    async def load(self, card: ModelCard, *, ttl: float | None = None) -> ModelReady:
        """Load a model by hand: it is not evicted, and stays for good or until it was idle for `ttl` seconds.

        Raises:
            ApiError: 404 it cannot be loaded; 503 there is no room, or loading takes too long.
            EngineDeadError: the worker is gone.
        """
        self._failures.pop(card.name, None)  # whoever asks by hand has a reason to try again
        ready = self._engine.models.get(card.name)
        if ready is None:
            ready = await self._wait_for(card, lambda: self._load(card))
        stay = self._stay(card.name)
        stay.ttl, stay.evictable, stay.last_used = ttl, False, self._clock()
        self._new_deadline.set()
        return ready

    async def unload(self, name: str) -> None:
        """Unload a resident model by hand.

        Raises:
            ApiError: 404 it is not resident; 409 it has jobs.
            EngineDeadError: the worker is gone.
        """
        await self._wait_for_start(name)
        if name in self._loads:
            with suppress(Exception):
                await asyncio.shield(self._loads[name])
        if name not in self._engine.models:
            raise model_not_loaded(name, self._engine.models)
        num_jobs = self._engine.num_jobs_of(name)
        if num_jobs or not await self._unload(name):
            raise model_busy(name, num_jobs)

    async def load_progress(self, name: str, until: "asyncio.Future[Any]") -> AsyncGenerator[ModelLoading]:
        """How far the loading of a model is, each time that it is further, until `until` is done.

        It only looks on: `until` is the task that calls `ensure` or `load`.
        """
        last: ModelLoading | None = None
        while not until.done():
            progress = self._engine.loading.get(name)
            if progress is not None and progress != last:
                last = progress
                yield progress
                continue  # something may have changed meanwhile
            change = asyncio.ensure_future(self._engine.next_change())
            await asyncio.wait({change, until}, return_when=asyncio.FIRST_COMPLETED)
            change.cancel()

    def is_loading(self, name: str) -> bool:
        """Whether the model is on its way."""
        return name in self._loads or name in self._engine.loading

    def residents(self) -> list[Resident]:
        """Every model in memory."""
        now = self._clock()
        return [self._describe(ready, now) for ready in self._engine.models.values()]

    def _describe(self, ready: ModelReady, now: float) -> Resident:
        stay = self._stay(ready.name)
        num_jobs = self._engine.num_jobs_of(ready.name)
        left = None
        if stay.ttl is not None:
            left = stay.ttl if num_jobs else max(0.0, stay.last_used + stay.ttl - now)
        return Resident(ready, num_jobs, stay.ttl, left, stay.load_seconds)

    # --------------------------------------------------------------------------------------------------------- loading

    async def _wait_for(self, card: ModelCard, start: Callable[[], "asyncio.Task[ModelReady]"]) -> ModelReady:
        """The result of a load, which goes on when this call is cancelled."""
        try:
            async with asyncio.timeout(MAX_LOAD_WAIT):
                await self._wait_for_start(card.name)
                if (ready := self._engine.models.get(card.name)) is not None:
                    return ready
                return await asyncio.shield(start())
        except TimeoutError:
            raise model_loading(card.name, self._engine.loading.get(card.name)) from None
        except ModelFailedError as error:
            raise self._refusal(card, error) from error

    def _refusal(self, card: ModelCard, error: ModelFailedError) -> Exception:
        if error.failed.code == "out_of_memory":
            return no_room_for_model(card.name, error.failed.message, self._holders())
        others = [other.name for other in self._registry.cards() if other.name not in self._engine.failed]
        return model_not_found(card.name, others, error.failed.message)

    async def _wait_for_start(self, name: str) -> None:
        """Wait for what a worker begins with, during which it loads nothing else, or for this model among it."""
        self._engine.check_alive()
        while not (self._engine.ready.is_set() or self._is_settled(name)):
            await self._engine.next_change()
            self._engine.check_alive()

    def _is_settled(self, name: str) -> bool:
        return name in self._engine.models or name in self._engine.failed

    def _load_for_request(self, card: ModelCard, ttl: float | None) -> "asyncio.Task[ModelReady]":
        if card.name in self._loads:
            return self._loads[card.name]
        if not self.policy.just_in_time:
            raise model_not_loaded(card.name, self._engine.models)
        failure = self._failures.get(card.name)
        if failure is None and (failed := self._engine.failed.get(card.name)) is not None:
            failure = self._note_failure(card.name, ModelFailedError(failed))  # at the start
        if failure is not None and self._clock() < failure.retry_at:
            raise failure.error
        granted = ttl if ttl is not None else self.policy.idle_ttl or None
        return self._load(card, Stay(granted, True, self._clock()))

    def _load(self, card: ModelCard, stay: Stay | None = None) -> "asyncio.Task[ModelReady]":
        """The task that loads a model, on the given terms; there is only one for each model."""
        if card.name not in self._loads:
            stay = stay or Stay(None, False, self._clock())
            task = asyncio.create_task(self._run_load(card, stay), name=f"load {card.name}")
            self._loads[card.name] = task
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever waits hears of it
        return self._loads[card.name]

    async def _run_load(self, card: ModelCard, stay: Stay) -> ModelReady:
        name = card.name
        try:
            async with self._one_load:
                if name in self._unloading:
                    await asyncio.shield(self._unloading[name])
                started = self._clock()
                ready = await self._load_with_room(card)
                self._failures.pop(name, None)
                now = self._clock()
                stay.load_seconds, stay.last_used, stay.expected_until = now - started, now, now + FIRST_USE_SECONDS
                self._stays[name] = stay
                self._new_deadline.set()
                _log.info("loaded %s in %.1f s", name, stay.load_seconds)
                return ready
        except ModelFailedError as error:
            self._note_failure(name, error)
            raise
        finally:
            self._engine.loading.pop(name, None)
            del self._loads[name]

    async def _load_with_room(self, card: ModelCard) -> ModelReady:
        """Load, and unload idle models for as long as the room is too small."""
        limit = self.policy.max_resident_models
        while limit and len(self._engine.models) >= limit:
            if not await self._evict():
                reason = f"at most {limit} models may be resident"
                raise no_room_for_model(card.name, reason, self._holders())
        while True:
            try:
                return await self._engine.load(self._spec_of(card))
            except ModelFailedError as error:
                if error.failed.code != "out_of_memory" or not await self._evict():
                    raise

    def _note_failure(self, name: str, error: ModelFailedError) -> _Failure:
        """Remember why; each failure doubles the pause until the next attempt. Missing room is no such failure."""
        before = self._failures.get(name)
        pause = min(2 * before.pause, _LAST_RETRY_SECONDS) if before else _FIRST_RETRY_SECONDS
        if error.failed.code == "out_of_memory":
            pause = 0.0
        failure = _Failure(error, self._clock() + pause, pause)
        if pause:
            self._failures[name] = failure
        _log.warning("%s could not be loaded: %s", name, error)
        return failure

    async def _make_resident(self, name: str) -> None:
        """For a job whose model has gone since its request was checked."""
        card = self._registry.get(name)
        if card is None:
            raise model_not_found(name, [other.name for other in self._registry.cards()])
        await self.ensure(card)

    # ------------------------------------------------------------------------------------------------------- unloading

    async def unload_idle(self) -> float | None:
        """Unload every model whose time is up; returns the seconds until the next one's, None: there is none."""
        for name in list(self._engine.models):
            left = self._seconds_left(name)
            if left is not None and left <= 0:
                _log.info("unloading %s, idle for %.0f s", name, self._stay(name).ttl)
                await self._unload(name)
        waits = [left for name in self._engine.models if (left := self._seconds_left(name)) is not None]
        return max(0.0, min(waits)) if waits else None

    def _seconds_left(self, name: str) -> float | None:
        """Until a model's time is up, at the earliest; None: it stays."""
        stay = self._stay(name)
        if stay.ttl is None:
            return None
        if self._engine.num_jobs_of(name):
            return max(stay.ttl, 1.0)  # the earliest that its time can be up
        return max(stay.last_used + stay.ttl, stay.expected_until) - self._clock()

    async def _evict(self) -> bool:
        """Unload the evictable model that was used longest ago; False if all are in use or are to stay."""
        kept: set[str] = set()  # by the worker, since other processes use them
        while True:
            idle = [
                (stay.expected_until, stay.last_used, name)
                for name in self._engine.models.keys() - kept
                if (stay := self._stay(name)).evictable and not self._engine.num_jobs_of(name)
            ]
            if not idle:
                return False
            now = self._clock()
            expected = min(idle)[0] - now
            if expected > 0:  # all of them were asked for just now: their jobs come, or do not
                await asyncio.sleep(expected)
                continue
            _, name = min((last_used, name) for until, last_used, name in idle if until <= now)
            _log.info("unloading %s to make room", name)
            if await self._unload(name):
                return True
            kept.add(name)

    async def _unload(self, name: str) -> bool:
        """Unload a model without jobs; False if the worker keeps it."""
        if name not in self._unloading:
            answer = self._unloading[name] = self._engine.unload(name)
            answer.add_done_callback(lambda done: self._note_unloaded(name, done))
        return await asyncio.shield(self._unloading[name])

    def _note_unloaded(self, name: str, done: "asyncio.Future[bool]") -> None:
        del self._unloading[name]
        if not done.cancelled() and done.exception() is None:
            if done.result():
                self._stays.pop(name, None)
            else:
                self._note_use(name)  # another process uses it: ask again when its time is up anew

    async def _reap(self) -> None:
        while True:
            self._new_deadline.clear()
            try:
                left = await self.unload_idle()
            except EngineDeadError:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._new_deadline.wait()

    # --------------------------------------------------------------------------------------------------------- its use

    def _stay(self, name: str) -> Stay:
        """The terms of a resident model; one that nobody asked for was named at the start, and stays."""
        if name not in self._stays:
            self._stays[name] = Stay(None, False, self._clock())
        return self._stays[name]

    def _note_use(self, name: str) -> None:
        """A job of the model begins or ends."""
        if (stay := self._stays.get(name)) is not None:
            stay.last_used = self._clock()
            stay.expected_until = 0.0

    def _holders(self) -> list[str]:
        """Who holds the memory and why it cannot go, for people."""
        words = []
        for name in self._engine.models:
            num_jobs = self._engine.num_jobs_of(name)
            busy = f"has {num_jobs} requests in flight" if num_jobs else "is idle"
            words.append(f"{name} ({busy if self._stay(name).evictable else 'is to stay resident'})")
        return words
