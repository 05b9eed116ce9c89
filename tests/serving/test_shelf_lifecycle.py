"""Models come and go: one load for many requests, TTL, eviction, failures, and the gap before a job is sent."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from fake_engine import BARE, CHAT, FakeEngine, model_ready, tiny_card, tiny_shelf, tiny_spec, until

from penstock.scheduler.config import ModelSpec
from penstock.scheduler.errors import EngineDeadError
from penstock.scheduler.messages import (
    DownMessage,
    ModelFailed,
    ModelLoading,
    ModelReady,
    ModelUnloaded,
    StepOutputs,
    Submit,
    Unload,
    UpMessage,
    WorkerReady,
)
from penstock.scheduler.sampling_params import SamplingParams
from penstock.serving.errors import ApiError
from penstock.serving.shelf import lifecycle
from penstock.serving.shelf.card import ModelCard
from penstock.serving.shelf.following import FollowingLifecycle
from penstock.serving.shelf.lifecycle import Lifecycle
from penstock.serving.shelf.registry import Registry
from penstock.serving.shelf.residency import LoadingPolicy

NAMES = ("a", "b", "c")
Answers = list[ModelLoading | ModelReady | ModelFailed]


@dataclass
class House:
    """A lifecycle over a fake engine with nothing in memory, three models on the shelf, and a clock."""

    engine: FakeEngine
    life: Lifecycle
    cards: dict[str, ModelCard]
    now: float = 0.0

    async def ensure(self, *names: str, ttl: float | None = None) -> None:
        for name in names:
            await self.life.ensure(self.cards[name], ttl=ttl)
            self.now += 10  # nobody expects its job any more

    def policy(self, **changes: Any) -> None:
        self.life.policy = replace(self.life.policy, **changes)

    @property
    def resident(self) -> set[str]:
        return set(self.engine.models)

    def job(self, model: str, number: int = 0) -> Submit:
        return Submit(f"job-{model}-{number}", model, [1, 2], SamplingParams(seed=0, max_tokens=3), 0.0)

    async def run(self, model: str) -> list[int]:
        return [
            token for output in [o async for o in self.engine.generate(self.job(model))] for token in output.token_ids
        ]

    def only_room_for(self, number: int) -> None:
        """The device holds so many models."""

        def answers(spec: ModelSpec) -> Answers:
            if len(self.engine.models) >= number:
                return [ModelFailed(spec.name, "needs 5 GiB, 2 GiB are free", "out_of_memory")]
            return self.engine.admit(spec)

        self.engine.load_answers = answers


@pytest.fixture
async def house() -> AsyncIterator[House]:
    chat = tiny_card(tiny_shelf()[CHAT])
    cards = {name: replace(chat, name=name) for name in NAMES}
    engine = FakeEngine(tiny_shelf()[CHAT].tokenizer)
    engine.models = {}
    place = House(engine, None, cards)  # type: ignore[arg-type]
    place.life = Lifecycle(engine, Registry(cards.values()), tiny_spec, LoadingPolicy(), clock=lambda: place.now)
    yield place
    await place.life.close()
    assert engine.num_jobs == 0 and not engine._num_jobs


def refusal(caught: "pytest.ExceptionInfo[ApiError]") -> tuple[int, str | None]:
    return caught.value.status, caught.value.code


async def test_many_requests_load_a_model_once(house: House) -> None:
    await asyncio.gather(*(house.life.ensure(house.cards["a"]) for _ in range(20)))
    await house.ensure("a", "b")
    assert house.engine.loads == ["a", "b"]


async def test_a_client_that_goes_away_stops_only_its_own_waiting(house: House) -> None:
    house.engine.load_answers = lambda spec: []
    impatient, patient = (asyncio.create_task(house.life.ensure(house.cards["a"])) for _ in range(2))
    await until(lambda: bool(house.engine.loads))
    impatient.cancel()
    await asyncio.sleep(0)
    house.engine._deliver(model_ready("a"))
    assert (await patient).kind == "generate"
    assert impatient.cancelled() and house.engine.loads == ["a"]


async def test_loads_take_place_one_after_the_other(house: House) -> None:
    loading: list[set[str]] = []

    def answers(spec: ModelSpec) -> Answers:
        loading.append(set(house.engine._loads))
        return house.engine.admit(spec)

    house.engine.load_answers = answers
    await asyncio.gather(*(house.life.ensure(house.cards[name]) for name in NAMES))
    assert loading == [{"a"}, {"b"}, {"c"}]


async def test_progress_is_told_until_the_model_is_there(house: House) -> None:
    house.engine.load_answers = lambda spec: []
    finding = asyncio.create_task(house.life.ensure(house.cards["a"]))
    progress = house.life.load_progress("a", finding)
    assert await anext(progress) == ModelLoading("a", "waiting", 0.0) and house.life.is_loading("a")
    for fraction in (0.25, 0.75):
        house.engine._deliver(ModelLoading("a", "reading weights", fraction))
        assert (await anext(progress)).fraction == fraction
    house.engine._deliver(model_ready("a"))
    assert [p async for p in progress] == [] and (await finding).name == "a"
    assert [p async for p in house.life.load_progress("a", finding)] == [] and not house.life.is_loading("a")


async def test_requests_during_the_start_wait_for_the_start_list(house: House) -> None:
    house.engine.ready.clear()
    started, other = (asyncio.create_task(house.life.ensure(house.cards[name])) for name in ("a", "b"))
    await asyncio.sleep(0.01)
    house.engine._deliver(model_ready("a"))
    assert (await started).name == "a" and not other.done() and house.engine.loads == []
    house.engine._deliver(WorkerReady())
    assert (await other).name == "b" and house.engine.loads == ["b"]


async def test_an_idle_model_goes_when_its_time_is_up_and_each_use_starts_it_anew(house: House) -> None:
    await house.life.ensure(house.cards["a"])
    await house.life.ensure(house.cards["b"], ttl=100)
    await house.life.ensure(house.cards["b"], ttl=5)  # it is loaded already: its terms stay
    assert await house.life.unload_idle() == 100
    house.now = 99
    await house.run("b")
    house.now = 198
    assert await house.life.unload_idle() == 1
    house.now = 199
    assert await house.life.unload_idle() == 3600 - 199
    assert house.resident == {"a"}
    house.now = 3600
    assert await house.life.unload_idle() is None
    assert house.engine.unloads == ["b", "a"]


async def test_without_an_idle_ttl_models_stay(house: House) -> None:
    house.policy(idle_ttl=0.0)
    await house.ensure("a")
    house.now = 1e9
    assert await house.life.unload_idle() is None and house.resident == {"a"}


async def test_a_model_with_jobs_is_never_unloaded(house: House) -> None:
    house.engine.script = lambda job: [10.0]
    await house.ensure("a", ttl=1)
    outputs = house.engine.generate(house.job("a"))
    reading = asyncio.create_task(anext(outputs))
    await until(lambda: house.engine.num_jobs == 1)
    house.now = 1000
    await house.life.unload_idle()
    with pytest.raises(ApiError, match="has 1 requests in flight") as caught:
        await house.life.unload("a")
    assert refusal(caught) == (409, "model_busy") and house.resident == {"a"}
    reading.cancel()
    with suppress(asyncio.CancelledError):
        await reading
    assert await house.life.unload_idle() == 1  # its time starts when the job ends
    house.now += 1
    await house.life.unload_idle()
    assert house.resident == set()


async def test_the_reaper_unloads_by_itself(house: House) -> None:
    house.life.start()
    await house.life.ensure(house.cards["a"], ttl=30)
    house.now = 100
    house.life._new_deadline.set()
    await until(lambda: house.resident == set())


async def test_models_named_at_the_start_or_loaded_by_hand_stay(house: House) -> None:
    house.engine._deliver(model_ready("a"))
    await house.life.load(house.cards["b"])
    await house.life.ensure(house.cards["c"])
    house.now = 1e9
    assert await house.life.unload_idle() is None
    assert house.resident == {"a", "b"}
    await house.life.load(house.cards["b"], ttl=5)  # by hand, but for a while
    house.now += 5
    await house.life.unload_idle()
    assert house.resident == {"a"}


async def test_room_is_made_by_the_one_used_longest_ago(house: House) -> None:
    house.only_room_for(2)
    await house.ensure("a", "b")
    await house.run("a")
    await house.ensure("c")
    assert house.resident == {"a", "c"} and house.engine.unloads == ["b"]


async def test_at_most_so_many_are_resident(house: House) -> None:
    house.policy(max_resident_models=1)
    await house.ensure("a", "b", "c")
    assert house.resident == {"c"} and house.engine.unloads == ["a", "b"]
    await house.life.unload("c")
    await house.life.load(house.cards["a"])
    with pytest.raises(ApiError, match="at most 1 models may be resident.*a \\(is to stay resident\\)") as caught:
        await house.ensure("b")
    assert refusal(caught) == (503, "out_of_memory") and caught.value.headers["retry-after"]


async def test_without_room_the_answer_names_who_holds_it(house: House) -> None:
    house.engine.script = lambda job: [10.0]
    house.only_room_for(2)
    house.engine._deliver(model_ready("a"))
    await house.ensure("b")
    reading = asyncio.create_task(anext(house.engine.generate(house.job("b"))))
    await until(lambda: house.engine.num_jobs == 1)
    with pytest.raises(ApiError, match=r"needs 5 GiB.*a \(is to stay resident\), b \(has 1 requests in") as caught:
        await house.ensure("c")
    assert refusal(caught) == (503, "out_of_memory")
    reading.cancel()
    with suppress(asyncio.CancelledError):
        await reading
    await house.ensure("c")  # at once: missing room is no failure that needs a pause
    assert house.resident == {"a", "c"}


async def test_a_model_just_asked_for_is_not_evicted_before_its_job_has_come(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    really_sleep = asyncio.sleep
    house.only_room_for(1)
    await house.life.ensure(house.cards["a"])

    async def sleep(seconds: float) -> None:
        if seconds:
            slept.append(seconds)
            house.now += seconds
        await really_sleep(0)

    monkeypatch.setattr(lifecycle.asyncio, "sleep", sleep)
    await house.life.ensure(house.cards["b"])
    assert slept == [lifecycle.FIRST_USE_SECONDS] and house.resident == {"b"}


async def test_a_job_whose_model_has_gone_meanwhile_loads_it_again(house: House) -> None:
    await house.ensure("a")
    await house.life.unload("a")
    assert await house.run("a")
    assert house.engine.loads == ["a", "a"]


async def test_a_job_that_comes_during_the_unloading_waits_for_its_end(house: House) -> None:
    await house.ensure("a")
    unloading = asyncio.create_task(house.life.unload("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert house.resident == set() and not unloading.done()
    assert await house.run("a")
    assert house.engine.unloads == ["a"] and house.engine.loads == ["a", "a"]


async def test_a_model_that_another_process_uses_is_kept(house: House) -> None:
    await house.ensure("a", ttl=1)
    house.engine._deliver = lambda message: FakeEngine._deliver(  # type: ignore[method-assign]
        house.engine, model_ready("a") if isinstance(message, ModelUnloaded) else message
    )
    await house.life.unload_idle()
    assert house.resident == {"a"}
    with pytest.raises(ApiError, match="requests of another process"):
        await house.life.unload("a")


async def test_a_failed_load_is_tried_again_but_not_in_a_storm(house: House) -> None:
    house.engine.load_answers = lambda spec: [ModelFailed(spec.name, "no such architecture.")]
    tried = []
    for second in range(40):
        house.now = float(second)
        with pytest.raises(ApiError, match="could not be loaded: no such architecture") as caught:
            await house.life.ensure(house.cards["a"])
        assert refusal(caught) == (404, "model_not_found")
        if len(house.engine.loads) > len(tried):
            tried.append(second)
    assert tried == [0, 5, 15, 35]
    house.engine.load_answers = house.engine.admit
    assert (await house.life.load(house.cards["a"])).name == "a"  # by hand, at once
    assert house.engine.failed == {}


async def test_a_failure_at_the_start_counts_as_the_first_try(house: House) -> None:
    house.engine._deliver(ModelFailed("a", "broken"))
    with pytest.raises(ApiError, match="broken"):
        await house.life.ensure(house.cards["a"])
    assert house.engine.loads == []
    house.now = 5
    await house.ensure("a")
    assert house.resident == {"a"}


async def test_without_jit_only_hands_load(house: House) -> None:
    house.policy(just_in_time=False)
    with pytest.raises(ApiError, match="penstock load a") as caught:
        await house.ensure("a")
    assert refusal(caught) == (404, "model_not_found") and house.engine.loads == []
    await house.life.load(house.cards["a"])
    await house.ensure("a")


async def test_a_load_that_takes_too_long_lets_requests_go(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "MAX_LOAD_WAIT", 0.01)
    house.engine.load_answers = lambda spec: [ModelLoading(spec.name, "reading weights", 0.25)]
    with pytest.raises(ApiError, match=r"still loading \(reading weights, 25%\)") as caught:
        await house.ensure("a")
    assert refusal(caught) == (503, "model_loading")
    house.engine._deliver(model_ready("a"))
    await house.ensure("a")
    assert house.engine.loads == ["a"]


async def test_a_dead_worker_ends_all_waiting(house: House) -> None:
    house.engine.load_answers = lambda spec: []
    waiting = [asyncio.create_task(house.life.ensure(house.cards[name])) for name in ("a", "b")]
    await until(lambda: bool(house.engine.loads))
    house.engine.mark_dead("was killed")
    for task in waiting:
        with pytest.raises(EngineDeadError, match="was killed"):
            await task


async def test_what_is_in_memory_is_told_with_its_terms(house: House) -> None:
    house.engine._deliver(model_ready(BARE))
    await house.life.ensure(house.cards["a"], ttl=60)
    house.now = 20
    start, jit = house.life.residents()
    assert (start.ready.name, start.ttl, start.seconds_left) == (BARE, None, None)
    assert (jit.ready.name, jit.ttl, jit.seconds_left, jit.num_jobs) == ("a", 60, 40, 0)


class StrictWorker(FakeEngine):
    """A fake engine that complains when a job meets a model that is not in memory, or an unloading one in use."""

    def __init__(self) -> None:
        super().__init__(tiny_shelf()[CHAT].tokenizer)
        self.models = {}
        self.in_memory: set[str] = set()
        self.most = 0
        self.running: Counter[str] = Counter()
        self.complaints: list[str] = []
        self.load_answers = self._note_load

    def _note_load(self, spec: ModelSpec) -> Answers:
        self.in_memory.add(spec.name)
        self.most = max(self.most, len(self.in_memory))
        return self.admit(spec)

    def _send(self, message: UpMessage) -> None:
        match message:
            case Submit(model=model) if model not in self.in_memory:
                self.complaints.append(f"a job for {model}, which is not in memory")
            case Submit(model=model):
                self.running[model] += 1
            case Unload(name=name):
                if self.running[name]:
                    self.complaints.append(f"{name} is unloaded with {self.running[name]} jobs")
                self.in_memory.discard(name)
        super()._send(message)

    def _deliver(self, message: DownMessage) -> None:
        for output in message.outputs if isinstance(message, StepOutputs) else ():
            if output.finish_reason is not None:
                self.running[output.request_id.split("-")[1]] -= 1
        super()._deliver(message)


@pytest.mark.parametrize("seed", range(5))
async def test_no_job_falls_into_a_gap_whatever_comes_together(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "FIRST_USE_SECONDS", 0.005)
    chance = random.Random(seed)
    chat = tiny_card(tiny_shelf()[CHAT])
    cards = [replace(chat, name=name) for name in NAMES]
    engine = StrictWorker()
    life = Lifecycle(engine, Registry(cards), tiny_spec, LoadingPolicy(idle_ttl=0.01, max_resident_models=2))
    life.start()
    answered: Counter[str] = Counter()

    async def client(number: int) -> None:
        card = chance.choice(cards)
        await asyncio.sleep(chance.random() * 0.2)
        try:
            match chance.randrange(10):
                case 0:
                    await life.unload(card.name)
                case 1:
                    async with asyncio.timeout(0.001):
                        await life.ensure(card)
                case _:
                    await life.ensure(card, ttl=chance.choice([None, 0]))
                    await asyncio.sleep(chance.random() * 0.01)
                    job = Submit(
                        f"job-{card.name}-{number}", card.name, [1, 2], SamplingParams(seed=0, max_tokens=3), 0.0
                    )
                    assert [output async for output in engine.generate(job)]
                    answered["served"] += 1
        except ApiError as error:
            assert error.code in ("out_of_memory", "model_not_found", "model_busy")
            answered[error.code] += 1
        except TimeoutError:
            answered["left"] += 1

    async with asyncio.timeout(20):
        await asyncio.gather(*(client(number) for number in range(300)))
    await until(lambda: not engine.models)  # all have gone by themselves
    await life.close()
    assert engine.complaints == [] and engine.most == 2
    assert answered["served"] > 60 and len(engine.loads) > 3, answered


async def test_a_process_that_follows_waits_for_the_worker_s_word(house: House) -> None:
    async def ask(name: str, ttl: float | None) -> None:
        house.engine._deliver(ModelLoading(name, "reading weights", 0.5))

    registry = Registry(house.cards.values())
    life = FollowingLifecycle(house.engine, registry, tiny_spec, LoadingPolicy(), ask=ask)
    waiting = asyncio.create_task(life.ensure(house.cards["a"]))
    await asyncio.sleep(0)
    for message in (ModelLoading("a", "checking", 0.9), ModelLoading("b", "waiting", 0.0), model_ready("a")):
        house.engine._deliver(message)
        await asyncio.sleep(0)
    assert (await waiting).name == "a"
