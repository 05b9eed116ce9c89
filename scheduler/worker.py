"""The device worker: one process that owns the device, takes jobs from the API processes and steps the engine.

    python -m penstock.scheduler.worker CONFIG_JSON

One thread does everything but the loading of models (`loader`) and the compiling of grammars (`compiling`), which have
their own and hand their news over between two steps. With no work the thread sleeps in poll, from which it wakes once a
second to show that it lives (`flight_record`); with work it looks for messages between steps without waiting. It ends
on SIGTERM, or when its standard input closes, which happens when the process that started it is gone; and with a status
of its own when the device is lost. On SIGUSR1 it writes the stacks of all its threads to its log.
"""

import contextlib
import faulthandler
import gc
import logging
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import zmq

from .compiling import GrammarQueue
from .config import ModelSpec, WorkerConfig
from .engine import Engine, Runner, StepResult
from .errors import DeviceFailedError, ModelLoadError, QueueFullError, RequestError
from .flight_record import FlightRecord
from .grammar import Grammar, GrammarCompiler, GrammarError, param_of
from .launch import DEVICE_FAILED_STATUS, load_config
from .loader import ModelLoader
from .messages import (
    Cancel,
    DownMessage,
    Embed,
    EmbeddingOutput,
    Hello,
    JobError,
    Load,
    ModelFailed,
    ModelLoading,
    ModelReady,
    ModelUnloaded,
    RequestOutput,
    StepOutputs,
    Submit,
    Unload,
    WorkerReady,
    decode,
    encode,
)
from .runner import GenerationRunner

logger = logging.getLogger(__name__)

_IDLE_MS = 1000
"""Between two signs of life of a worker without work."""


class Worker:
    """Joins the engine to the socket of the API processes."""

    def __init__(self, config: WorkerConfig, signals: int) -> None:
        """`signals` is a file descriptor that becomes readable when a signal has come."""
        self.config = config
        self.engine = Engine(config.engine)
        self._record = FlightRecord(Path(config.flight_record) if config.flight_record else None)
        self.engine.on_plan = lambda plan: self._record.begin_step(plan.job_ids, self.engine.num_in_flight)
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # a slow API process must not lose tokens
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to an API process that is gone raises
        self._socket.bind(config.address)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(sys.stdin.fileno(), zmq.POLLIN)
        self._poller.register(signals, zmq.POLLIN)
        self._news, news_writer = os.pipe()
        os.set_blocking(news_writer, False)
        self._poller.register(self._news, zmq.POLLIN)
        self._loader = ModelLoader(self.engine.config, lambda: _wake(news_writer))
        self._grammars = GrammarQueue(lambda: _wake(news_writer))
        self._counts_threads = config.engine.num_threads == 0 and "OMP_NUM_THREADS" not in os.environ
        self._clients: set[bytes] = set()
        self._client_of: dict[str, bytes] = {}  # request id -> API process
        self._model_states: dict[str, ModelLoading | ModelReady | ModelFailed] = {}
        self._starting = {spec.name for spec in config.models}
        """Models of the start list that are neither ready nor failed."""

    # ------------------------------------------------------------------------------------------------------ models

    def load_models(self) -> None:
        """Begin to load everything of the configuration, one after the other."""
        for spec in self.config.models:
            self._load(spec)

    def _load(self, spec: ModelSpec) -> None:
        """Begin to load a model, unless it is on its way already; the KV memory may give it room."""
        if self._loader.is_loading(spec.name):
            return
        if missing := self._loader.missing_bytes(spec):
            self.engine.shrink_kv_memory(missing)  # if it cannot, the loader says so
        # Beside running streams the loader leaves them processors.
        num_threads = self.engine.config.num_threads
        if self.engine.has_work:
            num_threads = max(1, num_threads // 2)
        self._loader.load(spec, num_threads=num_threads)
        self._announce(ModelLoading(spec.name, "waiting", 0.0))

    def _unload(self, client: bytes, name: str) -> None:
        """Give a model's memory back, or say that it is still in use."""
        if self.engine.is_resident(name):
            if self.engine.has_jobs(name) or self._grammars.has_jobs(name):
                self._send(client, self.engine.describe(name))
                return
            gc.unfreeze()  # or the model would stay, if it is part of a cycle
            self.engine.remove(name)
            self._freeze()
        self._loader.cancel(name)
        self._model_states.pop(name, None)
        self._end_start(name)
        self._send_to_all(lambda client: ModelUnloaded(name))

    def _take_news(self) -> None:
        """Install what the loader has finished, tell how far the rest is, and start jobs whose grammars are ready."""
        os.read(self._news, 4096)
        for news in self._loader.take_news():
            self._record.note_loading(news.name)
            if isinstance(news, ModelLoading):
                self._announce(news)
                continue
            state = news if isinstance(news, ModelFailed) else self._install(news)
            self._record.note_loading("")
            self._announce(state)
            self._end_start(state.name)
        for job, outcome in self._grammars.take_finished():
            client = self._client_of.pop(job.request_id)
            if isinstance(outcome, GrammarError) and job.sampling.grammar_fallback:
                sampling = replace(job.sampling, grammar=job.sampling.grammar_fallback, grammar_fallback="")
                self._submit(client, replace(job, sampling=sampling))
            elif isinstance(outcome, RequestError):
                self.engine.cancel(job.request_id)  # its place in the queue
                self._refuse(client, job, outcome)
            else:
                self._start(client, job, outcome)
        self._record.note_admitted(self._grammars.job_ids)

    def _install(self, runner: Runner) -> ModelReady | ModelFailed:
        try:
            self.engine.install(runner, keep_free=self._loader.wanted_bytes)
        except ModelLoadError as error:
            return ModelFailed(runner.name, str(error))
        except (MemoryError, RuntimeError) as error:  # PyTorch's own, of which not all are out-of-memory errors
            logger.exception("%s could not be installed", runner.name)
            return ModelFailed(runner.name, f"{type(error).__name__}: {error}", code="out_of_memory")
        if isinstance(runner, GenerationRunner) and not self.engine.has_work:
            if self._counts_threads:
                self.engine.choose_num_threads(runner.name)
            runner.grammars.prepare()
        self._freeze()
        return self.engine.describe(runner.name)

    def _freeze(self) -> None:
        """Keep the garbage collector away from what stays: a look through torch and a model takes it 0.2 s."""
        if not self.engine.has_work:  # no stream should wait for it
            gc.collect()
            gc.freeze()

    def _announce(self, state: ModelLoading | ModelReady | ModelFailed) -> None:
        """Tell every API process, and remember it for later ones."""
        self._model_states[state.name] = state
        self._send_to_all(lambda client: state)

    def _end_start(self, name: str) -> None:
        """Tell when the last model of the start list is ready, failed or unloaded."""
        if name in self._starting:
            self._starting.remove(name)
            if not self._starting:
                self._send_to_all(lambda client: WorkerReady())

    # -------------------------------------------------------------------------------------------------------- loop

    def run(self) -> None:
        """Serve until the starter is gone."""
        while True:
            events = dict(self._poller.poll(0 if self.engine.has_work else _IDLE_MS))
            if sys.stdin.fileno() in events:
                logger.info("the process that started this worker is gone: ending")
                return
            self._receive()
            if self._news in events:
                self._take_news()
            if self.engine.has_work:
                self._publish(self._step())
            else:
                self._record.beat()

    def _step(self) -> StepResult:
        """One step of the engine, which is recorded; a step that does nothing is no progress."""
        result = self.engine.step()
        self._record.end_step(self.engine.num_in_flight)
        if result.num_batched_tokens or result.outputs or result.embeddings:
            self._record.beat()
        return result

    def _receive(self) -> None:
        """Take every message that has arrived."""
        while True:
            try:
                client, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode(frames)
            except ValueError as error:
                logger.warning("dropped a message: %s", error)
                continue
            match message:
                case Hello():
                    self._greet(client)
                case Submit() | Embed():
                    self._submit(client, message)
                case Cancel():
                    self._cancel([id for id in message.request_ids if self._client_of.get(id) == client])
                case Load():
                    if self.engine.is_resident(message.spec.name):
                        self._send(client, self.engine.describe(message.spec.name))
                    else:
                        self._load(message.spec)
                case Unload():
                    self._unload(client, message.name)
                case _:
                    logger.warning("dropped a %s: it is for API processes", type(message).__name__)

    def _greet(self, client: bytes) -> None:
        self._clients.add(client)
        for state in self._model_states.values():
            self._send(client, state)
        if not self._starting:
            self._send(client, WorkerReady())

    def _submit(self, client: bytes, job: Submit | Embed) -> None:
        self._record.note_admitted([*self._grammars.job_ids, job.request_id])
        self._take_in(client, job)
        self._record.note_admitted(self._grammars.job_ids)

    def _take_in(self, client: bytes, job: Submit | Embed) -> None:
        """Queue a job, or have its grammar compiled first."""
        try:
            if job.request_id in self._client_of:
                message = f"there is already a job with the id {job.request_id}"
                raise RequestError(message, code="duplicate_request_id")
            grammar = None
            if isinstance(job, Submit) and job.sampling.grammar:
                compiler = self.engine.grammars_of(job.model)
                grammar = compiler.find(job.sampling.grammar)
                if grammar is None:
                    self._compile(client, job, compiler)
                    return
        except RequestError as error:
            self._refuse(client, job, error)
        else:
            self._start(client, job, grammar)

    def _compile(self, client: bytes, job: Submit, compiler: GrammarCompiler) -> None:
        """Have a job's grammar compiled, after which it starts; it has its place in the queue meanwhile."""
        self.engine.reserve(job)
        try:
            self._grammars.add(job, compiler)
        except RequestError as error:
            self.engine.cancel(job.request_id)
            if isinstance(error, QueueFullError):
                self.engine.scheduler.admission.count_refusal(job.model, "grammars")
            raise
        self._client_of[job.request_id] = client

    def _start(self, client: bytes, job: Submit | Embed, grammar: Grammar | None) -> None:
        try:
            self.engine.add(job, grammar)
        except RequestError as error:
            self._refuse(client, job, error)
        else:
            self._client_of[job.request_id] = client

    def _refuse(self, client: bytes, job: Submit | Embed, error: RequestError) -> None:
        param = param_of(error, job.sampling) if isinstance(job, Submit) else error.param
        failure = JobError(error.message, error.code, param, error.status, error.retry_after)
        refused = StepOutputs([], [], self.engine.stats(), 0.0, 0)
        if isinstance(job, Submit):
            refused.outputs.append(RequestOutput(job.request_id, [], finish_reason="error", error=failure))
        else:
            refused.embeddings.append(EmbeddingOutput(job.request_id, 0, b"", error=failure))
        self._send(client, refused)

    def _cancel(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._client_of.pop(request_id, None)
            self._grammars.cancel(request_id)
            self.engine.cancel(request_id)
        if not self.engine.has_work:  # no step will follow that would tell the new load
            self._publish(StepResult([], [], 0.0, 0))

    def _publish(self, result: StepResult) -> None:
        """One message to each API process that has jobs in this step, and the statistics to all."""
        outputs: dict[bytes, list[RequestOutput]] = defaultdict(list)
        embeddings: dict[bytes, list[EmbeddingOutput]] = defaultdict(list)
        for output in result.outputs:
            outputs[self._client_of[output.request_id]].append(output)
            if output.finish_reason is not None:
                del self._client_of[output.request_id]
        for embedding in result.embeddings:
            embeddings[self._client_of.pop(embedding.request_id)].append(embedding)
        stats = self.engine.stats()
        self._send_to_all(
            lambda client: StepOutputs(
                outputs[client], embeddings[client], stats, result.step_seconds, result.num_batched_tokens
            )
        )

    def _send_to_all(self, message_for: Callable[[bytes], DownMessage]) -> None:
        """Send each API process its message, and forget those that are gone."""
        gone = [client for client in self._clients if not self._send(client, message_for(client))]
        self._clients.difference_update(gone)  # all of them before the first's jobs, whose end is told to everybody
        for client in gone:
            abandoned = [request_id for request_id, owner in self._client_of.items() if owner == client]
            logger.warning("an API process is gone; its %d jobs are cancelled", len(abandoned))
            self._cancel(abandoned)

    def _send(self, client: bytes, message: DownMessage) -> bool:
        """Send a message to one API process; False if it is gone."""
        try:
            self._socket.send_multipart([client, *encode(message)])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True


def _wake(pipe: int) -> None:
    """Make the pipe's other end readable."""
    with contextlib.suppress(BlockingIOError):  # it is full, and so readable
        os.write(pipe, b"\0")


def main() -> None:
    """Run the worker whose configuration is the one argument."""
    config = load_config(sys.argv[1])
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s worker %(levelname)s %(message)s")
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)  # its "info" is our progress bar
    faulthandler.register(signal.SIGUSR1)  # its handler needs no interpreter: it works while C code holds that too

    def end(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the front's: it stops this process in order
    # A signal may arrive in one of OpenMP's threads and would then not wake this one from its poll.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    status = 0
    try:
        worker = Worker(config, reader)
        worker.load_models()
        worker.run()
    except SystemExit:
        logger.info("ended by SIGTERM")
    except DeviceFailedError:
        logger.critical("the device is lost: ending, to be started again", exc_info=True)
        status = DEVICE_FAILED_STATUS
    logging.shutdown()
    os._exit(status)  # taking the interpreter and gigabytes of tensors down in order takes seconds and helps nobody


if __name__ == "__main__":
    main()
