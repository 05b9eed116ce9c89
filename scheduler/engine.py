"""The engine: token ids in, token ids out, one synchronous step at a time, for all models of one device.

`add`, `cancel` and `step` are everything a caller needs; there is no input or output here, no thread and no clock but
the one that stamps timings. The device worker drives it in a process of its own, tests and benchmarks in theirs.
"""

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from . import device
from .admission_control import AdmissionControl, QueueLimits
from .config import EngineConfig
from .deadlines import Deadlines
from .drafts import Speculation
from .encoder import EncoderRunner, LaunchedTexts
from .errors import ModelLoadError, RequestError, UnknownModelError
from .failures import StepFailures
from .grammar import Grammar, GrammarCompiler
from .job_checks import check_second_starts, check_token_ids
from .kv_memory import KVMemory
from .messages import Embed, EmbeddingOutput, ModelReady, ModelStats, RequestOutput, Submit
from .outputs import OutputMaker
from .pace import StepPace
from .plan import EmbeddingBatch, GenerationBatch, StepPlan
from .policy import EmbeddingJob
from .request import Request
from .results import LaunchedBatch
from .runner import GenerationRunner
from .scheduler import Scheduler
from .statistics import stats_of
from .thread_count import choose_num_threads, timed
from .vectors import VectorCollector

logger = logging.getLogger(__name__)

_TRIAL_ROWS = 8
"""Of a step that finds out how many threads are best."""

Runner = GenerationRunner | EncoderRunner


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step produced."""

    outputs: list[RequestOutput]
    embeddings: list[EmbeddingOutput]
    step_seconds: float
    num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class _Launch:
    """One model's share of a step that the device may still be computing."""

    batch: GenerationBatch | EmbeddingBatch
    results: LaunchedBatch | LaunchedTexts
    """Of the batch's kind."""
    started: float


class Engine:
    """All resident models of one device under one scheduler."""

    def __init__(self, config: EngineConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is what timeouts are measured with, in seconds."""
        self.config = device.resolve(config)
        self._usual_num_threads = self.config.num_threads
        torch.set_num_threads(self.config.num_threads)
        torch.get_num_threads()  # fixes it for this thread: else its first operation takes what any other has set last
        self.scheduler = Scheduler(
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            pace=StepPace(self.config.itl_target_ms / 1000),
            admission=AdmissionControl(QueueLimits.of(self.config), clock),
            speculation=Speculation.of(self.config),
            fair_share=self.config.fair_share,
        )
        self._deadlines = Deadlines(self.config, self.scheduler, clock)
        self._generation: dict[str, GenerationRunner] = {}
        self._embedding: dict[str, EncoderRunner] = {}
        self._kv_memory = KVMemory(self.config, self.scheduler)
        self._maker = OutputMaker(self.scheduler)
        self._vectors = VectorCollector(self.scheduler)
        self._failures = StepFailures(self.scheduler, self._vectors, self.config.device)
        self._in_flight: list[_Launch] = []
        self._not_launched: list[tuple[GenerationBatch | EmbeddingBatch, Exception]] = []
        self._outputs: list[RequestOutput] = []
        """For the result of the running or next step, as the embeddings are."""
        self._embeddings: list[EmbeddingOutput] = []
        self.on_plan: Callable[[StepPlan], None] | None = None
        """Called with what a step computes before it is launched."""
        self._last_done = 0.0
        """When the device was last seen to have finished something."""

    # ------------------------------------------------------------------------------------------------------ models

    def install(self, runner: Runner, *, keep_free: int = 0) -> None:
        """Serve a model that `load_runner` has loaded; cheap, so that it may be done between two steps.

        Args:
            runner: the model.
            keep_free: bytes of memory that other models will want; the first generation model takes the KV memory of
                all, and leaves them.

        Raises:
            ModelLoadError: its name is taken, or the KV memory does not hold one block of it.
        """
        name = runner.name
        if self.is_resident(name):
            raise ModelLoadError(f"there is already a model with the name {name}")
        cost = runner.num_parameters / 1e9
        if isinstance(runner, GenerationRunner):
            kv = self._kv_memory.share(runner, keep_free)
            self._generation[name] = runner
            self.scheduler.install_generation(name, kv, runner.max_model_len, token_cost=cost)
        else:
            self._embedding[name] = runner
            self.scheduler.install_embedding(name, runner.max_model_len, token_cost=cost)

    def choose_num_threads(self, name: str) -> None:
        """Compute with as many threads as suit the only model, which was just installed: see `thread_count`.

        Does nothing for a model that does not run in the CPU's native kernels.
        """
        runner = self._generation.get(name)
        if runner is None or not runner.is_native or len(self._generation) + len(self._embedding) > 1:
            return
        usual, num_rows = self._usual_num_threads, min(_TRIAL_ROWS, self.config.max_num_seqs)

        def time_step(num_threads: int) -> float | None:
            torch.set_num_threads(num_threads)
            return timed(lambda: runner.try_decode(num_rows))

        chosen = choose_num_threads(usual, time_step)
        torch.set_num_threads(chosen)
        self.config = replace(self.config, num_threads=chosen)
        logger.info("%s runs with %d of %d threads, by trial", name, chosen, usual)

    def shrink_kv_memory(self, num_bytes: int) -> bool:
        """Make room for the weights of another model, see `KVMemory.shrink`."""
        self._collect_all()
        return self._kv_memory.shrink(num_bytes, self._generation.values())

    def is_resident(self, name: str) -> bool:
        """Whether a model of that name is installed."""
        return name in self._generation or name in self._embedding

    def has_jobs(self, name: str) -> bool:
        """Whether any job of a resident model is not finished."""
        return self.scheduler.has_jobs(name)

    def remove(self, name: str) -> None:
        """Give the memory of a resident model back, which has no jobs; the KV memory too, after the last that used it.

        The memory is free once the caller holds no other reference to the runner.
        """
        self._collect_all()  # the rows of jobs that ended a moment ago may still be computed
        self.scheduler.remove(name)
        self._failures.forget(name)
        self._embedding.pop(name, None)
        self._generation.pop(name, None)
        if not self.has_work:
            gc.collect()  # for models that are part of a cycle; it takes 0.2 s, for which no stream should wait
        if not self._generation:
            self._kv_memory.free()
        device.return_memory(self.config.device)

    def describe(self, name: str) -> ModelReady:
        """What the front needs to know about a loaded model."""
        runner = self._generation.get(name) or self._embedding[name]
        lane = self.scheduler.generation_lanes.get(name)
        return ModelReady(
            name=name,
            kind="generate" if isinstance(runner, GenerationRunner) else runner.kind,
            architecture=runner.architecture,
            device=str(runner.device),
            dtype=str(runner.dtype).removeprefix("torch."),
            max_model_len=runner.max_model_len,
            vocab_size=runner.vocab_size,
            num_kv_blocks=lane.kv.pool.num_blocks if lane else 0,
            block_size=self.config.block_size,
            max_num_seqs=self.config.max_num_seqs,
            embedding_dim=0 if isinstance(runner, GenerationRunner) else runner.output_dim,
            num_parameters=runner.num_parameters,
            weight_bytes=runner.num_parameters * runner.dtype.itemsize,
            kv_block_bytes=lane.kv.pool.block_bytes if lane else 0,
        )

    def stats(self) -> dict[str, ModelStats]:
        """The load of every model."""
        return stats_of(self.scheduler)

    # -------------------------------------------------------------------------------------------------------- jobs

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return self.scheduler.has_work or bool(self._in_flight or self._outputs or self._embeddings)

    def grammars_of(self, model: str) -> GrammarCompiler:
        """What compiles grammars for a generation model.

        Raises:
            UnknownModelError: it is not resident.
        """
        if model not in self.scheduler.generation_lanes:
            raise UnknownModelError(f"no generation model {model} is resident")
        return self._generation[model].grammars

    def add(self, job: Submit | Embed, grammar: Grammar | None = None) -> None:
        """Queue a job.

        Args:
            job: what to generate or embed.
            grammar: that of the job's sampling parameters, if the caller has compiled it; else it is compiled here.

        Raises:
            RequestError: it can never be served, or too much waits; nothing was queued.
        """
        try:
            self._queue(job, grammar)
        except RequestError:
            if not self.scheduler.has_job(job.request_id):
                self.scheduler.admission.leave(job.request_id)
            raise
        self._deadlines.add(job)

    def reserve(self, job: Submit) -> None:
        """Take a place in the queue for a job that is added later, or cancelled.

        Raises:
            QueueFullError: too much waits already.
        """
        self.scheduler.admission.enter(job, len(job.prompt_token_ids) + len(job.output_token_ids), is_ready=False)

    def _queue(self, job: Submit | Embed, grammar: Grammar | None) -> None:
        if isinstance(job, Submit):
            grammars = self.grammars_of(job.model)
            check_token_ids([job.prompt_token_ids, job.output_token_ids], self._generation[job.model].vocab_size)
            request = Request.from_submit(job)
            if job.sampling.grammar:
                grammar = grammar or grammars.compile(job.sampling.grammar)
                request.matcher = grammar.start(job.output_token_ids)
            self.scheduler.add(request)
        else:
            if job.model not in self.scheduler.embedding_lanes:
                raise UnknownModelError(f"no embedding model {job.model} is resident")
            check_token_ids(job.inputs, self._embedding[job.model].vocab_size)
            check_second_starts(job)
            self.scheduler.add_embedding(
                EmbeddingJob(
                    job.request_id,
                    job.model,
                    job.inputs,
                    job.arrival_time,
                    job.principal,
                    job.priority,
                    job.second_starts,
                    job.alone,
                    job.is_resumed,
                    job.weight,
                )
            )

    def cancel(self, request_id: str) -> None:
        """Forget a job; unknown ids are ignored."""
        self.scheduler.cancel(request_id)
        self._outputs = [output for output in self._outputs if output.request_id != request_id]
        self._embeddings = [output for output in self._embeddings if output.request_id != request_id]
        self._vectors.forget(request_id)

    # -------------------------------------------------------------------------------------------------------- step

    @property
    def num_in_flight(self) -> int:
        """Steps that were launched and are not collected: none, or the last one."""
        return int(bool(self._in_flight))

    def step(self) -> StepResult:
        """Launch the next step, and collect what the device has finished.

        With `overlap` that is the step before: the host gets the next one ready while the device computes, and a step
        may come without results. Without it, it is the same step.

        Raises:
            DeviceFailedError: the device computes nothing any more.
        """
        started = time.perf_counter()
        self._end_late_jobs()
        if self.scheduler.is_alone_next:
            self._collect_all()
        plan = self.scheduler.schedule()
        if self.on_plan is not None:
            self.on_plan(plan)
        in_flight, self._in_flight = self._in_flight, []
        batches: list[GenerationBatch | EmbeddingBatch] = [*plan.generation, *plan.embedding]
        for batch in batches:
            self._launch(batch)
            if self.config.overlap == "off" or plan.alone:
                self._collect_all()
        for launch in in_flight:
            self._collect(launch)
        # After what was launched before them: their requests have its tokens now.
        not_launched, self._not_launched = self._not_launched, []
        for batch, error in not_launched:
            self._fail(error, batch)
        outputs, self._outputs = self._outputs, []
        embeddings, self._embeddings = self._embeddings, []
        seconds = time.perf_counter() - started
        self.scheduler.pace.observe_step(plan.num_tokens_beside, seconds)
        return StepResult(outputs, embeddings, seconds, plan.num_batched_tokens)

    def _end_late_jobs(self) -> None:
        """Tell the jobs whose time is over."""
        for job in self._deadlines.late():
            self.cancel(job.request_id)
            if job.is_embedding:
                self._embeddings.append(EmbeddingOutput(job.request_id, 0, b"", error=job.error))
            else:
                self._outputs.append(RequestOutput(job.request_id, [], finish_reason="error", error=job.error))

    def _launch(self, batch: GenerationBatch | EmbeddingBatch) -> None:
        """Begin a model's share of a step."""
        started = time.perf_counter()
        results: LaunchedBatch | LaunchedTexts
        try:
            if isinstance(batch, GenerationBatch):
                results = self._launch_generation(batch)
            else:
                texts = [item.token_ids for item in batch.inputs]
                results = self._embedding[batch.model].launch(texts, [item.second_start for item in batch.inputs])
        except Exception as error:  # whatever the model did, the other models and later jobs go on
            self._not_launched.append((batch, error))
        else:
            self._in_flight.append(_Launch(batch, results, started))

    def _launch_generation(self, batch: GenerationBatch) -> LaunchedBatch:
        now = time.time()
        for row in batch.rows:
            row.request.first_scheduled_time = row.request.first_scheduled_time or now
        results = self._generation[batch.model].launch(batch)
        for row in batch.rows:
            self.scheduler.advance(row)
        return results

    def _collect(self, launch: _Launch) -> None:
        """Wait for a model's share of a step and give its jobs their results."""
        batch, results = launch.batch, launch.results
        try:
            found = results.collect()
        except Exception as error:  # a GPU reports here what went wrong in it
            self._fail(error, batch)
            return
        self._failures.note_success(batch.model)
        # The device began when it was told to, or after what it had to do before that.
        done = time.perf_counter()
        seconds = done - max(launch.started, self._last_done)
        self._last_done = done
        if isinstance(batch, GenerationBatch):
            assert isinstance(found, list)
            num_streams = sum(row.is_stream for row in batch.rows)
            num_drafts = sum(len(row.drafts) for row in batch.rows)
            num_others = batch.num_tokens - num_streams - num_drafts
            self.scheduler.pace.observe(batch.model, num_streams, num_others, seconds, num_drafts)
            eos_token_ids = self._generation[batch.model].eos_token_ids
            self._outputs += self._maker.outputs_of(batch.rows, found, eos_token_ids)
        else:
            assert not isinstance(found, list)
            self.scheduler.pace.observe(batch.model, 0, batch.num_tokens, seconds)
            self._embeddings += self._vectors.add(batch, found)

    def _fail(self, error: Exception, batch: GenerationBatch | EmbeddingBatch) -> None:
        """Find out what becomes of the jobs of a batch, and drop what was launched after it of the same requests."""
        later: list[GenerationBatch] = []
        in_flight, self._in_flight = self._in_flight, []
        for launch in in_flight:
            if isinstance(launch.batch, GenerationBatch) and launch.batch.model == batch.model:
                later.append(launch.batch)
            else:
                self._in_flight.append(launch)
        endings = self._failures.judge(error, batch, later)
        self._outputs += endings.outputs
        self._embeddings += endings.embeddings

    def _collect_all(self) -> None:
        """Collect everything that is in flight: also because memory is to change; the next step tells what came."""
        while self._in_flight:
            self._collect(self._in_flight.pop(0))
