"""The API process's end of the wire to the device worker: jobs up, and every job's outputs down into its own mailbox.

One task reads the socket and drops outputs into mailboxes; one waiting handler per job takes all that has come
together. Nothing polls, and a job leaves no state behind, however it ends.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Generic, TypeVar

import zmq
import zmq.asyncio

from penstock.scheduler.config import ModelSpec
from penstock.scheduler.errors import EngineDeadError
from penstock.scheduler.messages import (
    Cancel,
    DownMessage,
    Embed,
    EmbeddingOutput,
    Hello,
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
    decode,
    encode,
)

from .errors import JobFailedError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class _Mailbox(Generic[_T]):
    """What the worker has sent for one job and nobody has taken yet."""

    def __init__(self) -> None:
        self._items: list[_T] = []
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    def put(self, item: _T) -> None:
        self._items.append(item)
        self._wake()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._wake()

    async def take(self) -> list[_T]:
        """Everything that waits, at least one item; then raises what `fail` was given. One reader at a time."""
        if not self._items:
            if self._error is not None:
                raise self._error
            self._reader = asyncio.get_running_loop().create_future()  # an asyncio.Event costs twice as much
            await self._reader
            return await self.take()
        items, self._items = self._items, []
        return items

    def _wake(self) -> None:
        if self._reader is not None:
            if not self._reader.done():
                self._reader.set_result(None)
            self._reader = None


class ModelFailedError(Exception):
    """The worker could not load a model."""

    def __init__(self, failed: ModelFailed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class EngineClient:
    """Talks to one device worker.

    Attributes:
        models: what is resident, by name.
        failed: what could not be loaded, by name, until the next attempt.
        loading: how far the others are, by name.
        stats: load of each model at the end of the last step.
        ready: set when every model of the start list is ready or failed.
        on_step: called with every step's outputs, for metrics.
        on_progress: called after every change of `models`, `failed` or `loading`.
        make_resident: called before a job of a model that is not resident is sent: it may have been unloaded since the
            job's request was checked.
        on_use: called with a model's name whenever a job of it begins or ends, and at every step that has
            jobs of it, of whichever process.

    Args:
        address: ZeroMQ address that the worker binds.
    """

    def __init__(self, address: str) -> None:
        self.models: dict[str, ModelReady] = {}
        self.failed: dict[str, ModelFailed] = {}
        self.loading: dict[str, ModelLoading] = {}
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
        self._address = address
        self._death: str | None = None
        self._generations: dict[str, _Mailbox[RequestOutput]] = {}
        self._embeddings: dict[str, _Mailbox[EmbeddingOutput]] = {}
        self._context: zmq.asyncio.Context | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def death(self) -> str | None:
        """Why the worker is gone; None while it lives."""
        return self._death

    @property
    def num_jobs(self) -> int:
        """Jobs in flight."""
        return len(self._generations) + len(self._embeddings)

    def num_jobs_of(self, model: str) -> int:
        """Jobs of one model in flight."""
        return self._num_jobs[model]

    async def start(self) -> None:
        """Connect and ask for the state of every model; the worker may bind its address later."""
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # jobs are bounded by the HTTP side; a full queue would lose a cancel
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(self._address)
        self._reader = asyncio.create_task(self._read(self._socket), name="engine-client")
        self._send(Hello())

    async def close(self) -> None:
        """End every job with EngineDeadError and disconnect."""
        self.mark_dead("the server is shutting down")
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        if self._context is not None:
            self._context.term()

    def mark_dead(self, reason: str) -> None:
        """The worker is gone: every job in flight and every later one ends with EngineDeadError at once."""
        if self._death is not None:
            return
        self._death = reason
        error = self._dead_error()
        for generation in self._generations.values():
            generation.fail(error)
        for embedding in self._embeddings.values():
            embedding.fail(error)
        waiting: list[asyncio.Future[Any]] = [*self._loads.values(), *self._unloads.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
        self._tell_change()

    async def load(self, spec: ModelSpec) -> ModelReady:
        """Make a model resident; one that is resident already is ready at once. One call for a model at a time.

        Raises:
            ModelFailedError: the worker could not load it.
            EngineDeadError: the worker is gone.
        """
        self.check_alive()
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
            Whether it has gone: the worker keeps a model that another API process uses. EngineDeadError if the worker
            is gone.

        Raises:
            EngineDeadError: the worker is gone already.
        """
        self.check_alive()
        self.models.pop(name, None)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._unloads[name] = answer
        answer.add_done_callback(lambda done: self._unloads.pop(name))
        self._send(Unload(name))
        return answer

    async def next_change(self) -> None:
        """Return at the next change of `models`, `failed`, `loading` or `death`."""
        await self._changed.wait()

    def check_alive(self) -> None:
        """Refuse to go on without a worker.

        Raises:
            EngineDeadError: the worker is gone.
        """
        if self._death is not None:
            raise self._dead_error()

    async def generate(self, job: Submit) -> AsyncGenerator[RequestOutput]:
        """Run a generation job; outputs that wait together come as one.

        Leaving the iterator before its end, by closing it or by cancelling the task that reads it, cancels the job in
        the worker.

        Raises:
            EngineDeadError: the worker is gone.
            JobFailedError: the worker refused or lost this job.
        """
        mailbox: _Mailbox[RequestOutput] = _Mailbox()
        finished = False
        await self._open(job, mailbox, self._generations)
        try:
            self._send(job)
            while not finished:
                output = _merge(await mailbox.take())
                if output.error is not None:
                    finished = True
                    raise JobFailedError(output.error)
                finished = output.finish_reason is not None
                yield output
        finally:
            self._drop(job, self._generations, cancel=not finished)

    async def embed(self, job: Embed) -> EmbeddingOutput:
        """Run an embedding job; cancelling the calling task cancels it in the worker.

        Raises:
            EngineDeadError: the worker is gone.
            JobFailedError: the worker refused or lost this job.
        """
        mailbox: _Mailbox[EmbeddingOutput] = _Mailbox()
        finished = False
        await self._open(job, mailbox, self._embeddings)
        try:
            self._send(job)
            (output,) = await mailbox.take()
            finished = True
            if output.error is not None:
                raise JobFailedError(output.error)
            return output
        finally:
            self._drop(job, self._embeddings, cancel=not finished)

    async def _open(self, job: Submit | Embed, mailbox: "_Mailbox[_T]", mailboxes: "dict[str, _Mailbox[_T]]") -> None:
        self.check_alive()
        while job.model not in self.models and self.make_resident is not None:
            await self.make_resident(job.model)
        assert job.request_id not in mailboxes, f"two jobs with the id {job.request_id}"
        mailboxes[job.request_id] = mailbox
        self._num_jobs[job.model] += 1
        if self.on_use is not None:
            self.on_use(job.model)

    def _drop(self, job: Submit | Embed, mailboxes: "dict[str, _Mailbox[_T]]", *, cancel: bool) -> None:
        del mailboxes[job.request_id]
        self._num_jobs[job.model] -= 1
        if not self._num_jobs[job.model]:
            del self._num_jobs[job.model]
        if cancel and self._death is None:
            self._send(Cancel([job.request_id]))
        if self.on_use is not None:
            self.on_use(job.model)

    def _dead_error(self) -> EngineDeadError:
        return EngineDeadError(f"The device worker is gone ({self._death}). Try again when it is back.")

    def _send(self, message: UpMessage) -> None:
        """Hand a message to ZeroMQ, which never blocks here: the queue has no limit."""
        assert self._socket is not None, "start() was not called"
        sent = asyncio.ensure_future(self._socket.send_multipart(encode(message)))
        sent.add_done_callback(_log_failure)

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            try:
                self._deliver(decode(frames))  # type: ignore[arg-type]  # a worker sends nothing else
            except Exception:  # one bad message may not silence all the others
                _log.exception("a message of the device worker could not be delivered")

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
        for output in step.outputs:
            if (generation := self._generations.get(output.request_id)) is not None:
                generation.put(output)
        for vectors in step.embeddings:
            if (embedding := self._embeddings.get(vectors.request_id)) is not None:
                embedding.put(vectors)
        if self.on_step is not None:
            self.on_step(step)


def _is_in_use(stats: ModelStats, before: ModelStats | None) -> bool:
    """Whether a model has jobs, or had some that one step finished."""
    known = before.prompt_tokens if before is not None else 0
    return bool(stats.num_running or stats.num_waiting or stats.prompt_tokens > known)


def _resolve(future: "asyncio.Future[_T] | None", value: _T) -> None:
    if future is not None and not future.done():
        future.set_result(value)


def _merge(outputs: list[RequestOutput]) -> RequestOutput:
    """Consecutive outputs of one job as one."""
    if len(outputs) == 1:
        return outputs[0]
    last = outputs[-1]
    with_logprobs = any(output.logprobs is not None for output in outputs)
    of_prompt = [output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None]
    return RequestOutput(
        request_id=last.request_id,
        token_ids=[token_id for output in outputs for token_id in output.token_ids],
        num_cached_tokens=max(output.num_cached_tokens for output in outputs),
        num_computed_tokens=max(output.num_computed_tokens for output in outputs),
        finish_reason=last.finish_reason,
        stop_token_id=last.stop_token_id,
        logprobs=[entry for output in outputs for entry in output.logprobs or ()] if with_logprobs else None,
        prompt_logprobs=of_prompt[0] if of_prompt else None,
        error=last.error,
        timings=last.timings,
    )


def _log_failure(sent: "asyncio.Future[Any]") -> None:
    if not sent.cancelled() and (error := sent.exception()) is not None:
        _log.error("a message to the device worker was not sent: %s", error)
