"""The client's end of the wire, against a ROUTER socket that plays the worker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from fake_engine import CHAT, model_ready, step, until

from penstock.scheduler.config import ModelSpec
from penstock.scheduler.errors import EngineDeadError
from penstock.scheduler.messages import (
    Cancel,
    Embed,
    EmbeddingOutput,
    Hello,
    JobError,
    JobTimings,
    Load,
    Message,
    ModelFailed,
    ModelLoading,
    ModelStats,
    ModelUnloaded,
    RequestOutput,
    StepOutputs,
    Submit,
    TokenLogprobs,
    Unload,
    WorkerReady,
    decode,
    encode,
)
from penstock.scheduler.sampling_params import SamplingParams
from penstock.serving.engine_client import EngineClient, ModelFailedError
from penstock.serving.errors import ApiError, JobFailedError
from penstock.serving.worker_news import WorkerLost, WorkerStarted


class Worker:
    """A ROUTER socket under the test's control."""

    def __init__(self, address: str) -> None:
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(address)
        self.peer = b""

    async def receive(self) -> Message:
        async with asyncio.timeout(5):
            self.peer, *frames = await self.socket.recv_multipart()
        return decode(frames)

    async def send(self, message: Message) -> None:
        await self.socket.send_multipart([self.peer, *encode(message)])

    async def is_silent(self) -> bool:
        return not await self.socket.poll(30)


@pytest.fixture
async def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/w.sock"


@pytest.fixture
async def worker(address: str) -> AsyncIterator[Worker]:
    worker = Worker(address)
    yield worker
    worker.socket.close()
    worker.context.term()


@pytest.fixture
async def client(address: str, worker: Worker) -> AsyncIterator[EngineClient]:
    client = EngineClient(WorkerStarted(0, address))
    await client.start()
    assert await worker.receive() == Hello()
    yield client
    await client.close()
    assert client.num_jobs == 0


def job(name: str = "r") -> Submit:
    return Submit(name, CHAT, [1, 2], SamplingParams(max_tokens=5, seed=1), 1.0)


def tokens(name: str, ids: list[int], reason: str | None = None, **fields: Any) -> StepOutputs:
    return step(outputs=[RequestOutput(name, ids, finish_reason=reason, **fields)])


async def collect(client: EngineClient, job: Submit) -> list[RequestOutput]:
    return [output async for output in client.generate(job)]


async def test_models_arrive_whatever_their_fate(client: EngineClient, worker: Worker) -> None:
    seen = []
    client.on_progress = lambda: seen.append((set(client.models), set(client.failed), set(client.loading)))
    await worker.send(ModelLoading(CHAT, "reading weights", 0.5))
    await worker.send(model_ready(CHAT))
    await worker.send(ModelLoading("b", "reading weights", 0.1))
    await worker.send(ModelFailed("b", "no"))
    assert not client.ready.is_set()
    await worker.send(WorkerReady())
    await asyncio.wait_for(client.ready.wait(), 5)
    assert client.models == {CHAT: model_ready(CHAT)} and client.failed["b"].message == "no" and not client.loading
    assert seen[0] == (set(), set(), {CHAT}) and seen[-1] == ({CHAT}, {"b"}, set())


async def test_worker_may_bind_after_the_client_connects(address: str) -> None:
    client = EngineClient(WorkerStarted(0, address))
    await client.start()
    await asyncio.sleep(0.02)
    worker = Worker(address)
    assert await worker.receive() == Hello()
    await client.close()
    worker.socket.close()
    worker.context.term()


async def test_outputs_find_their_job(client: EngineClient, worker: Worker) -> None:
    both = asyncio.gather(collect(client, job("a")), collect(client, job("b")))
    assert {(await worker.receive()).request_id for _ in range(2)} == {"a", "b"}  # type: ignore[union-attr]
    steps: list[StepOutputs] = []
    client.on_step = steps.append
    outputs = [RequestOutput("a", [1]), RequestOutput("b", [2], finish_reason="length"), RequestOutput("other", [9])]
    await worker.send(step(outputs=outputs))
    await worker.send(tokens("a", [3], "stop", stop_token_id=3))
    first, second = await both
    assert [token_id for output in first for token_id in output.token_ids] == [1, 3]
    assert [output.token_ids for output in second] == [[2]]
    assert len(steps) == 2 and client.stats[CHAT].num_running == 1
    assert await worker.is_silent()


async def test_waiting_outputs_come_as_one(client: EngineClient, worker: Worker) -> None:
    async with aclosing(client.generate(job())) as outputs:
        first = asyncio.ensure_future(anext(outputs))
        await worker.receive()
        await worker.send(tokens("r", [1], num_cached_tokens=2, logprobs=[TokenLogprobs(-1.0, [], [])]))
        await first
        await worker.send(tokens("r", [2], num_cached_tokens=2, logprobs=[TokenLogprobs(-2.0, [], [])]))
        await worker.send(tokens("r", [3, 4], "stop", stop_token_id=4, logprobs=[TokenLogprobs(-3.0, [], [])] * 2))
        await worker.send(ModelFailed("mark", ""))
        await until(lambda: "mark" in client.failed)
        merged = await anext(outputs)
        assert (merged.token_ids, merged.finish_reason, merged.stop_token_id) == ([2, 3, 4], "stop", 4)
        assert merged.num_cached_tokens == 2
        assert merged.logprobs is not None and [e.logprob for e in merged.logprobs] == [-2.0, -3.0, -3.0]
        with pytest.raises(StopAsyncIteration):
            await anext(outputs)
    assert await worker.is_silent()


async def test_leaving_early_cancels(client: EngineClient, worker: Worker) -> None:
    async with aclosing(client.generate(job())) as outputs:
        first = asyncio.ensure_future(anext(outputs))
        await worker.receive()
        await worker.send(tokens("r", [1]))
        await first
    assert await worker.receive() == Cancel(["r"])
    assert client.num_jobs == 0
    await worker.send(tokens("r", [2]))  # on its way already: nobody minds
    assert [out.finish_reason async for out in _answered(client, worker, "s")] == ["stop"]


async def _answered(client: EngineClient, worker: Worker, name: str) -> AsyncIterator[RequestOutput]:
    task = asyncio.ensure_future(collect(client, job(name)))
    await worker.receive()
    await worker.send(tokens(name, [1], "stop"))
    for output in await task:
        yield output


async def test_cancelled_tasks_cancel_their_jobs(client: EngineClient, worker: Worker) -> None:
    generating = asyncio.ensure_future(collect(client, job("a")))
    embedding = asyncio.ensure_future(client.embed(Embed("b", "e", [[1]], 1.0)))
    for task in (generating, embedding):
        await worker.receive()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [await worker.receive(), await worker.receive()] == [Cancel(["a"]), Cancel(["b"])]


async def test_embeddings_and_their_errors(client: EngineClient, worker: Worker) -> None:
    for error in (None, JobError("too long", "context_length_exceeded")):
        task = asyncio.ensure_future(client.embed(Embed("e", "m", [[1]], 1.0)))
        assert await worker.receive() == Embed("e", "m", [[1]], 1.0)
        await worker.send(step(embeddings=[EmbeddingOutput("e", 1, b"1234", error)]))
        if error is None:
            assert (await task).data == b"1234"
        else:
            with pytest.raises(JobFailedError, match="too long"):
                await task


async def test_job_errors_are_raised(client: EngineClient, worker: Worker) -> None:
    task = asyncio.ensure_future(collect(client, job()))
    await worker.receive()
    await worker.send(tokens("r", [], "error", error=JobError("never fits", "context_length_exceeded", "prompt")))
    with pytest.raises(JobFailedError) as caught:
        await task
    assert caught.value.error.param == "prompt"
    assert await worker.is_silent()


async def test_death_ends_every_job_and_refuses_later_ones(client: EngineClient, worker: Worker) -> None:
    generating = asyncio.ensure_future(collect(client, job("a")))
    embedding = asyncio.ensure_future(client.embed(Embed("b", "e", [[1]], 1.0)))
    await worker.receive()
    await worker.receive()
    client.mark_dead("exit status 1")
    client.mark_dead("again")
    for task in (generating, embedding):
        with pytest.raises(EngineDeadError, match="exit status 1"):
            await task
    with pytest.raises(EngineDeadError):
        await collect(client, job("c"))
    with pytest.raises(EngineDeadError):
        await client.embed(Embed("d", "e", [[1]], 1.0))
    assert client.death == "exit status 1" and client.num_jobs == 0


async def test_what_arrived_before_the_death_is_delivered(client: EngineClient, worker: Worker) -> None:
    task = asyncio.ensure_future(collect(client, job()))
    await worker.receive()
    client._deliver(tokens("r", [1], "stop"))
    client.mark_dead("exit status 1")
    assert [output.token_ids for output in await task] == [[1]]


async def test_garbage_does_not_stop_the_reader(
    client: EngineClient, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    await worker.socket.send_multipart([worker.peer, b"Nonsense", b""])
    assert [out.finish_reason async for out in _answered(client, worker, "s")] == ["stop"]
    assert "could not be delivered" in caplog.text


SPEC = ModelSpec("new", "/models/new", "generate")


async def test_a_model_is_loaded_and_unloaded(client: EngineClient, worker: Worker) -> None:
    loading = asyncio.create_task(client.load(SPEC))
    assert await worker.receive() == Load(SPEC)
    assert client.loading["new"].stage == "waiting"
    await worker.send(ModelLoading("new", "reading weights", 0.5))
    await worker.send(model_ready("new"))
    assert (await loading).name == "new" and "new" in client.models and client.loading == {}
    client.stats["new"] = step().stats[CHAT]
    gone = client.unload("new")
    assert "new" not in client.models  # at once: no job may meet a model that is going
    assert await worker.receive() == Unload("new")
    await worker.send(ModelUnloaded("new"))
    assert await gone is True and client.stats == {}
    kept = client.unload("new")
    await worker.receive()
    await worker.send(model_ready("new"))
    assert await kept is False and "new" in client.models


async def test_a_model_that_fails_is_remembered_until_the_next_attempt(client: EngineClient, worker: Worker) -> None:
    loading = asyncio.create_task(client.load(SPEC))
    await worker.receive()
    await worker.send(ModelFailed("new", "too large", "out_of_memory"))
    with pytest.raises(ModelFailedError, match="too large") as caught:
        await loading
    assert caught.value.failed == client.failed["new"]
    again = asyncio.create_task(client.load(SPEC))
    await worker.receive()
    assert client.failed == {}
    client.mark_dead("was killed")
    with pytest.raises(EngineDeadError, match="was killed"):
        await again
    for attempt in (lambda: client.load(SPEC), lambda: client.unload("new")):
        with pytest.raises(EngineDeadError):
            await attempt()


async def test_jobs_are_counted_for_each_model(client: EngineClient, worker: Worker) -> None:
    uses: list[tuple[str, int]] = []
    client.on_use = lambda name: uses.append((name, client.num_jobs_of(name)))
    job = Submit("a", CHAT, [1], SamplingParams(seed=0, max_tokens=1), 0.0)
    async with aclosing(client.generate(job)) as outputs:
        reading = asyncio.create_task(anext(outputs))
        await worker.receive()
        assert (client.num_jobs_of(CHAT), client.num_jobs_of("other")) == (1, 0)
        await worker.send(step([RequestOutput("a", [1], finish_reason="length")]))
        await reading
    assert uses == [(CHAT, 1), (CHAT, 1), (CHAT, 0)]  # it begins, has a step, ends


async def test_a_step_that_finished_another_process_s_jobs_is_a_use(client: EngineClient, worker: Worker) -> None:
    uses: list[str] = []
    client.on_use = uses.append
    for num_prompt_tokens in (0, 12, 12, 20):  # a text is embedded in one step, whose end has no job of it left
        stats = ModelStats(0, 0, 0, 0, 0, 0, 0, num_prompt_tokens, 0)
        await worker.send(StepOutputs([], [], {"m": stats}, 0.01, 12))
    await until(lambda: "m" in client.stats and client.stats["m"].prompt_tokens == 20)
    assert uses == ["m", "m"]


class Lives:
    """A client, and one worker after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[Worker] = []
        self.client = EngineClient(WorkerStarted(0, self.address(0)))

    def address(self, generation: int) -> str:
        return f"ipc://{self.folder}/w{generation}.sock"

    @property
    def worker(self) -> Worker:
        return self.workers[-1]

    async def begin(self, *models: str) -> None:
        """The next worker listens; it has these models ready."""
        generation = len(self.workers)
        self.workers.append(Worker(self.address(generation)))
        if generation:
            self.client.take_news(WorkerStarted(generation, self.address(generation)))
        else:
            await self.client.start()
        assert await self.worker.receive() == Hello()
        for name in models:
            await self.worker.send(model_ready(name))
        await self.worker.send(WorkerReady())
        await asyncio.wait_for(self.client.ready.wait(), 5)

    def lose(self, *suspects: str, **fields: Any) -> None:
        self.client.take_news(WorkerLost("was killed by signal 9", frozenset(suspects), **fields))


@pytest.fixture
async def lives(tmp_path: Path) -> AsyncIterator[Lives]:
    lives = Lives(tmp_path)
    yield lives
    await lives.client.close()
    assert lives.client.num_jobs == 0
    for worker in lives.workers:
        worker.socket.close()
        worker.context.term()


async def test_a_job_goes_on_in_the_next_worker_from_the_tokens_it_has(lives: Lives) -> None:
    await lives.begin(CHAT)
    async with aclosing(lives.client.generate(job())) as outputs:
        first = asyncio.ensure_future(anext(outputs))
        sent = await lives.worker.receive()
        await lives.worker.send(tokens("r", [1, 2], num_cached_tokens=1))
        assert (await first).token_ids == [1, 2]
        following = asyncio.ensure_future(anext(outputs))
        lives.lose("r")
        await asyncio.sleep(0)
        assert not following.done() and lives.client.models == {} and not lives.client.ready.is_set()
        await lives.begin(CHAT)
        assert await lives.worker.receive() == replace(sent, output_token_ids=[1, 2], is_resumed=True)  # type: ignore[type-var]
        timings = JobTimings(1.0, 1.0, 1.0, 0)
        await lives.worker.send(tokens("r", [3], "stop", num_cached_tokens=2, timings=timings))
        last = await following
    assert (last.token_ids, last.finish_reason) == ([3], "stop")
    assert last.num_cached_tokens == 1, "what the second worker found of the prompt was computed for this very job"
    assert last.timings is None, "they would leave the first worker out"
    assert await lives.worker.is_silent()


async def test_what_has_arrived_is_not_asked_for_again(lives: Lives) -> None:
    await lives.begin(CHAT)
    async with aclosing(lives.client.generate(job())) as outputs:
        first = asyncio.ensure_future(anext(outputs))
        await lives.worker.receive()
        await lives.worker.send(tokens("r", [1]))
        await first
        lives.client._deliver(tokens("r", [2]))  # nobody has taken it when the worker dies
        lives.lose()
        assert (await anext(outputs)).token_ids == [2]
        following = asyncio.ensure_future(anext(outputs))
        await lives.begin(CHAT)
        again = await lives.worker.receive()
        assert isinstance(again, Submit) and again.output_token_ids == [1, 2]
        await lives.worker.send(tokens("r", [3], "length"))
        assert (await following).token_ids == [3]


async def test_jobs_that_come_between_two_workers_wait(lives: Lives) -> None:
    await lives.begin(CHAT, "e")
    lives.lose()
    new = Embed("e", "e", [[1]], 1.0)
    embedding = asyncio.ensure_future(lives.client.embed(new))
    await asyncio.sleep(0)
    await lives.begin("e")
    assert await lives.worker.receive() == new
    await lives.worker.send(step(embeddings=[EmbeddingOutput("e", 1, b"1234")]))
    assert (await embedding).data == b"1234"


async def test_a_job_that_is_left_between_two_workers_is_gone(lives: Lives) -> None:
    await lives.begin(CHAT)
    running = asyncio.ensure_future(collect(lives.client, job()))
    await lives.worker.receive()
    lives.lose("r")
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert lives.client.num_jobs == 0
    await lives.begin(CHAT)
    assert await lives.worker.is_silent()


async def test_a_load_goes_on_and_an_unload_is_done(lives: Lives) -> None:
    await lives.begin(CHAT)
    loading = asyncio.ensure_future(lives.client.load(SPEC))
    await lives.worker.receive()
    going = lives.client.unload(CHAT)
    await lives.worker.receive()
    assert lives.client.wanted_specs() == [SPEC]
    lives.lose(was_loading=True)
    assert await going is True
    await lives.begin("new")
    assert (await loading).name == "new"
    lost = asyncio.ensure_future(lives.client.load(replace(SPEC, name="other")))
    await lives.worker.receive()
    lives.lose(failed_models={"other": "it ended the worker"})
    with pytest.raises(ModelFailedError, match="it ended the worker"):
        await lost
    assert lives.client.wanted_models() == ["new"]
    assert await lives.client.unload("new") is False, "there is no worker that could, and the next one begins with it"


async def test_a_job_whose_model_does_not_come_back_is_told(lives: Lives) -> None:
    async def make_resident(name: str) -> None:
        raise ApiError("no room", status=404)

    await lives.begin(CHAT)
    lives.client.make_resident = make_resident
    running = asyncio.ensure_future(collect(lives.client, job()))
    await lives.worker.receive()
    lives.lose("r")
    await lives.begin()
    with pytest.raises(ApiError, match="no room") as caught:
        await running
    assert (caught.value.status, caught.value.code) == (503, "model_lost")


async def test_a_job_that_ends_workers_is_computed_alone_and_then_fails(lives: Lives) -> None:
    await lives.begin(CHAT)
    poison, other = (asyncio.ensure_future(collect(lives.client, job(name))) for name in "po")
    for number_of_deaths in range(3):
        sent = {}
        for _ in "po":
            message = await lives.worker.receive()
            assert isinstance(message, Submit)
            sent[message.request_id] = message.alone
        assert sent == dict.fromkeys("po", number_of_deaths == 2)
        if number_of_deaths < 2:
            lives.lose("p", "o")
            await lives.begin(CHAT)
    lives.lose("p")
    with pytest.raises(JobFailedError, match="died 3 times") as caught:
        await poison
    assert (caught.value.error.status, caught.value.error.code) == (500, "worker_crashed")
    await lives.begin(CHAT)
    assert (await lives.worker.receive()).request_id == "o"  # type: ignore[union-attr]
    await lives.worker.send(tokens("o", [1], "stop"))
    assert [output.token_ids for output in await other] == [[1]]


async def test_a_job_at_fault_is_told_although_nobody_waits_for_its_tokens_just_then(lives: Lives) -> None:
    await lives.begin(CHAT)
    async with aclosing(lives.client.generate(job())) as outputs:
        for number in range(2):
            following = asyncio.ensure_future(anext(outputs))
            await lives.worker.receive()
            await lives.worker.send(tokens("r", [number]))
            await following
            lives.lose("r")
            if not number:
                await lives.begin(CHAT)
        with pytest.raises(JobFailedError, match="died 2 times"):
            await anext(outputs)


async def test_nobody_waits_for_workers_that_do_not_get_ready(lives: Lives) -> None:
    await lives.begin(CHAT)
    running = asyncio.ensure_future(collect(lives.client, job()))
    await lives.worker.receive()
    lives.lose(is_hopeless=True)
    for refused in (running, asyncio.ensure_future(collect(lives.client, job("s")))):
        with pytest.raises(EngineDeadError, match="was killed by signal 9, and there is no other one yet"):
            await refused
    await lives.begin(CHAT)  # against all hope
    assert lives.client.death is None
    running = asyncio.ensure_future(collect(lives.client, job()))
    await lives.worker.receive()
    await lives.worker.send(tokens("r", [1], "stop"))
    await running
