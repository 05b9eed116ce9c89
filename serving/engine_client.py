"""The API process's view of the device worker: which models it has, and jobs that go on even when it dies.

A worker that is lost is followed by another one. Every unfinished job waits until its model is ready there, and is sent
again with the tokens that it has had: sampling is keyed by the seed and the position, so that it goes on as it would
have. Nothing polls, and a job leaves no state behind, however it ends.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from penstock.scheduler.config import ModelSpec
from penstock.scheduler.errors import EngineDeadError
from penstock.scheduler.messages import (
    Cancel,
    DownMessage,
    Embed,
    EmbeddingOutput,
    Load,
    ModelFailed,
    ModelLoading,
    ModelReady,
    ModelStats,
    ModelUnloaded,
    RequestOutput,
    StepOutputs,
    Submit,
    Unload,
    UpMessage,
    WorkerReady,
)

from .errors import ApiError, JobFailedError
from .mailbox import merge
from .open_job import OpenJob, WorkerLostError
from .worker_link import WorkerLink
from .worker_news import WorkerLost, WorkerNews, WorkerStarted

_T = TypeVar("_T")


class ModelFailedError(Exception):
    """The worker could not load a model."""

    def __init__(self, failed: ModelFailed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class EngineClient:
    """Talks to the device worker of the moment.

    Attributes:
        models: what is resident, by name.
        failed: what could not be loaded, by name, until the next attempt.
        loading: how far the others are, by name.
        stats: load of each model at the end of the last step.
        ready: set when every model that the worker began with is ready or failed.
        worker: the worker of the moment, or the last one; `lost` tells how that ended, None while it lives.
        on_step: called with every step's outputs, for metrics.
        on_progress: called after every change of `models`, `failed` or `loading`.
        make_resident: called before a job of a model that is not resident is sent: it may have been unloaded since the
            job's request was checked.
        on_use: called with a model's name whenever a job of it begins or ends, and at every step that has
            jobs of it, of whichever process.

    Args:
        worker: the first one.
        models: what it begins with.
    """

    def __init__(self, worker: WorkerStarted, models: Iterable[ModelSpec] = ()) -> None:
        self.worker = worker
        self.lost: WorkerLost | None = None
        self._specs = {spec.name: spec for spec in models}
        self.models: dict[str, ModelReady] = {}
        self.failed: dict[str, ModelFailed] = {}
        # The worker says so itself as soon as it has imported its libraries; until then they would seem to be unloaded.
        self.loading = {name: ModelLoading(name, "waiting", 0.0) for name in self._specs}
        self.stats: dict[str, ModelStats] = {}
        self.ready = asyncio.Event()
        self.on_step: Callable[[StepOutputs], None] | None = None
        self.on_progress: Callable[[], None] | None = None
        self.make_resident: Callable[[str], Awaitable[object]] | None = None
        self.on_use: Callable[[str], None] | None = None
        self._changed = asyncio.Event()
        self._loads: dict[str, asyncio.Future[ModelReady]] = {}
        self._unloads: dict[str, asyncio.Future[bool]] = {}
        self._num_jobs: Counter[str] = Counter()
        self._death: str | None = None
        self._despair: str | None = None
        self._jobs: dict[str, OpenJob[Any]] = {}
        self._link = WorkerLink(self._deliver)

    @property
    def death(self) -> str | None:
        """Why nothing is served any more, or not before a worker comes up again; None: all is well, or will be soon."""
        return self._death or self._despair

    @property
    def num_jobs(self) -> int:
        """Jobs in flight."""
        return len(self._jobs)

    def num_jobs_of(self, model: str) -> int:
        """Jobs of one model in flight."""
        return self._num_jobs[model]

    async def start(self) -> None:
        """Connect and ask for the state of every model; the worker may bind its address later."""
        self._link.connect(self.worker.address)

    async def close(self) -> None:
        """End every job with EngineDeadError and disconnect."""
        self.mark_dead("the server is shutting down")
        await self._link.close()

    def mark_dead(self, reason: str) -> None:
        """The server gives up: every job in flight and every later one ends with EngineDeadError at once."""
        if self._death is None:
            self._death = reason
            self._fail_all()

    def _fail_all(self) -> None:
        error = self._dead_error()
        for entry in self._jobs.values():
            entry.mailbox.fail(error)
        waiting: list[asyncio.Future[Any]] = [*self._loads.values(), *self._unloads.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
        self._tell_change()

    # ------------------------------------------------------------------------------------------------- worker's lives

    def take_news(self, news: WorkerNews) -> None:
        """The worker is gone, or another one has taken its place."""
        match news:
            case WorkerStarted():
                self.worker, self.lost = news, None
                self._link.connect(news.address)
                self._tell_change()
            case WorkerLost():
                self._lose(news)

    def _lose(self, lost: WorkerLost) -> None:
        self.lost = lost
        self._link.disconnect()
        self.ready.clear()
        self.loading = {name: ModelLoading(name, "waiting", 0.0) for name in self.wanted_models()}
        self.models.clear()
        self.stats.clear()
        for name in list(self._unloads):
            _resolve(self._unloads.get(name), True)
        for name, reason in lost.failed_models.items():
            self._deliver(ModelFailed(name, reason))
        for entry in self._jobs.values():
            fault = entry.note_death(lost)
            entry.mailbox.fail(JobFailedError(fault) if fault else WorkerLostError(lost.how))
        if lost.is_hopeless:
            self._despair = f"it {lost.how}, and there is no other one yet"
            self._fail_all()
        self._tell_change()

    def wanted_models(self) -> list[str]:
        """What another worker begins with: models in memory or on their way, those with the most jobs first."""
        names = self.models.keys() | self.loading.keys() | self._loads.keys()
        return sorted(names, key=lambda name: (-self._num_jobs[name], name))

    def wanted_specs(self) -> list[ModelSpec]:
        """The same, as the worker is told of them."""
        return [self._specs[name] for name in self.wanted_models()]

    # --------------------------------------------------------------------------------------------------------- models

    async def load(self, spec: ModelSpec) -> ModelReady:
        """Make a model resident; one that is resident already is ready at once. One call for a model at a time.

        Raises:
            ModelFailedError: the worker could not load it.
            EngineDeadError: the server gives up.
        """
        await self._until_there_is_a_worker()
        self._specs[spec.name] = spec
        self.failed.pop(spec.name, None)
        self.loading[spec.name] = ModelLoading(spec.name, "waiting", 0.0)
        self._tell_change()
        answer: asyncio.Future[ModelReady] = asyncio.get_running_loop().create_future()
        self._loads[spec.name] = answer
        try:
            self._send(Load(spec))
            return await answer
        finally:
            del self._loads[spec.name]

    def unload(self, name: str) -> "asyncio.Future[bool]":
        """Give a model's memory back. One call for a model at a time.

        New jobs of the model wait from this call on for `make_resident`, so that none slips in between a caller's look
        at `num_jobs_of` and this call.

        Returns:
            Whether it has gone, and stays so: other API processes may use it. EngineDeadError if the server gives up.

        Raises:
            EngineDeadError: the server has given up.
        """
        self.check_alive()
        self.models.pop(name, None)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._unloads[name] = answer
        answer.add_done_callback(lambda done: self._unloads.pop(name))
        if self.lost is None:
            self._send(Unload(name))
        else:
            answer.set_result(False)  # the next worker begins with it
        return answer

    async def next_change(self) -> None:
        """Return at the next change of `models`, `failed`, `loading`, `lost` or `death`."""
        await self._changed.wait()

    def check_alive(self) -> None:
        """Refuse to wait for a worker that does not come.

        Raises:
            EngineDeadError: the server has given up.
        """
        if self.death is not None:
            raise self._dead_error()

    async def _until_there_is_a_worker(self) -> None:
        self.check_alive()
        while self.lost is not None:
            await self.next_change()
            self.check_alive()

    # ----------------------------------------------------------------------------------------------------------- jobs

    async def generate(self, job: Submit) -> AsyncGenerator[RequestOutput]:
        """Run a generation job; outputs that wait together come as one.

        Leaving the iterator before its end, by closing it or by cancelling the task that reads it, cancels the job in
        the worker.

        Raises:
            ApiError: the job's model is not there any more.
            EngineDeadError: the server gives up.
            JobFailedError: the worker refused or lost this job, or was brought down by it.
        """
        entry: OpenJob[RequestOutput] = OpenJob(job)
        await self._until_model(entry)
        with self._opened(entry):
            self._send(entry.for_next_worker())
            while not entry.is_over:
                try:
                    output = merge(await entry.mailbox.take())
                except WorkerLostError:
                    await self._send_again(entry)
                    continue
                entry.is_over = output.finish_reason is not None or output.error is not None
                if output.error is not None:
                    raise JobFailedError(output.error)
                yield entry.received(output)

    async def embed(self, job: Embed) -> EmbeddingOutput:
        """Run an embedding job; cancelling the calling task cancels it in the worker.

        Raises:
            ApiError: the job's model is not there any more.
            EngineDeadError: the server gives up.
            JobFailedError: the worker refused or lost this job, or was brought down by it.
        """
        entry: OpenJob[EmbeddingOutput] = OpenJob(job)
        await self._until_model(entry)
        with self._opened(entry):
            self._send(entry.for_next_worker())
            while True:
                try:
                    (output,) = await entry.mailbox.take()
                except WorkerLostError:
                    await self._send_again(entry)
                    continue
                entry.is_over = True
                if output.error is not None:
                    raise JobFailedError(output.error)
                return output

    @contextmanager
    def _opened(self, entry: OpenJob[Any]) -> Iterator[None]:
        """The job is in flight, and cancelled if it is left before it is over."""
        job: Submit | Embed = entry.job
        assert job.request_id not in self._jobs, f"two jobs with the id {job.request_id}"
        self._jobs[job.request_id] = entry
        self._num_jobs[job.model] += 1
        self._note_use(job.model)
        try:
            yield
        finally:
            del self._jobs[job.request_id]
            self._num_jobs[job.model] -= 1
            if not self._num_jobs[job.model]:
                del self._num_jobs[job.model]
            if not entry.is_over and self._death is None and self.lost is None:
                self._send(Cancel([job.request_id]))
            self._note_use(job.model)

    async def _until_model(self, entry: OpenJob[Any]) -> None:
        """Wait until there is a worker that has the job's model."""
        await self._until_there_is_a_worker()
        while entry.job.model not in self.models and self.make_resident is not None:
            await self.make_resident(entry.job.model)
            await self._until_there_is_a_worker()

    async def _send_again(self, entry: OpenJob[Any]) -> None:
        """Let a job go on in the next worker, as soon as that has its model."""
        model = entry.job.model
        # What may end the worker again runs when nothing is loaded that could be blamed.
        while not self.ready.is_set() and (entry.is_suspect or model not in self.models):
            await self.next_change()
            self.check_alive()
        try:
            await self._until_model(entry)
        except ApiError as error:
            message = f"The model '{model}' did not come back after the device worker had died: {error.message}"
            raise ApiError(message, status=503, code="model_lost", param="model") from error
        self._send(entry.for_next_worker())

    def _note_use(self, model: str) -> None:
        if self.on_use is not None:
            self.on_use(model)

    def _dead_error(self) -> EngineDeadError:
        return EngineDeadError(f"The device worker is gone ({self.death}). Try again when it is back.")

    # -------------------------------------------------------------------------------------------------------- messages

    def _send(self, message: UpMessage) -> None:
        self._link.send(message)

    def _deliver(self, message: DownMessage) -> None:
        match message:
            case StepOutputs():
                self._deliver_step(message)
            case ModelLoading(name=name):
                self.failed.pop(name, None)
                self.loading[name] = message
            case ModelReady(name=name):
                self.loading.pop(name, None)
                self.failed.pop(name, None)
                self.models[name] = message
                _resolve(self._loads.get(name), message)
                _resolve(self._unloads.get(name), False)
            case ModelFailed(name=name):
                self.loading.pop(name, None)
                self.failed[name] = message
                if (waiting := self._loads.get(name)) is not None and not waiting.done():
                    waiting.set_exception(ModelFailedError(message))
            case ModelUnloaded(name=name):
                self.models.pop(name, None)
                self.stats.pop(name, None)
                _resolve(self._unloads.get(name), True)
            case WorkerReady():
                self._despair = None
                self.ready.set()
        if not isinstance(message, StepOutputs):
            self._tell_change()

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed.clear()  # those that waited go on; later ones wait for the next change
        if self.on_progress is not None:
            self.on_progress()

    def _deliver_step(self, step: StepOutputs) -> None:
        if self.on_use is not None:
            for model, stats in step.stats.items():
                if _is_in_use(stats, self.stats.get(model)):  # whichever process's jobs they are
                    self.on_use(model)
        self.stats.update(step.stats)
        outputs: list[RequestOutput | EmbeddingOutput] = [*step.outputs, *step.embeddings]
        for output in outputs:
            if (entry := self._jobs.get(output.request_id)) is not None:
                entry.mailbox.put(output)
        if self.on_step is not None:
            self.on_step(step)


def _is_in_use(stats: ModelStats, before: ModelStats | None) -> bool:
    """Whether a model has jobs, or had some that one step finished."""
    known = before.prompt_tokens if before is not None else 0
    return bool(stats.num_running or stats.num_waiting or stats.prompt_tokens > known)


def _resolve(future: "asyncio.Future[_T] | None", value: _T) -> None:
    if future is not None and not future.done():
        future.set_result(value)
