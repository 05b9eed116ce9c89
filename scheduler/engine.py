"""The engine: token ids in, token ids out, one synchronous step at a time, for all models of one device.

`add`, `cancel` and `step` are everything a caller needs; there is no input or output here, no thread and no clock but
the one that stamps timings. The device worker drives it in a process of its own, tests and benchmarks in theirs.
"""

import gc
import logging
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from . import device
from .config import EngineConfig
from .encoder import EncoderRunner
from .errors import ModelLoadError, RequestError, UnknownModelError
from .grammar import Grammar, GrammarCompiler, invalid_grammar, param_of
from .job_checks import check_second_starts, check_token_ids
from .kv_memory import KVMemory
from .lanes import EmbeddingLane, GenerationLane
from .messages import (
    Embed,
    EmbeddingOutput,
    JobError,
    JobTimings,
    ModelReady,
    ModelStats,
    RequestOutput,
    Submit,
)
from .pace import StepPace
from .plan import EmbeddingBatch, GenerationBatch, SampledToken, ScheduledRow
from .policy import EmbeddingJob
from .request import Request
from .runner import GenerationRunner
from .scheduler import Scheduler

logger = logging.getLogger(__name__)

_STEP_FAILED = JobError(
    "The model failed while computing this request; the server's log says why.", code="internal_error", status=500
)

Runner = GenerationRunner | EncoderRunner


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step produced."""

    outputs: list[RequestOutput]
    embeddings: list[EmbeddingOutput]
    step_seconds: float
    num_batched_tokens: int


class Engine:
    """All resident models of one device under one scheduler."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = device.resolve(config)
        torch.set_num_threads(self.config.num_threads)
        torch.get_num_threads()  # fixes it for this thread: else its first operation takes what any other has set last
        self.scheduler = Scheduler(
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            pace=StepPace(self.config.itl_target_ms / 1000),
        )
        self._generation: dict[str, GenerationRunner] = {}
        self._embedding: dict[str, EncoderRunner] = {}
        self._kv_memory = KVMemory(self.config, self.scheduler)
        self._embedding_results: dict[str, np.ndarray] = {}
        """[num inputs, dim] by request id, filled over several steps."""

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
        if isinstance(runner, GenerationRunner):
            kv = self._kv_memory.share(runner, keep_free)
            self._generation[name] = runner
            self.scheduler.generation_lanes[name] = GenerationLane(name, kv, runner.max_model_len)
        else:
            self._embedding[name] = runner
            self.scheduler.embedding_lanes[name] = EmbeddingLane(name, runner.max_model_len)

    def shrink_kv_memory(self, num_bytes: int) -> bool:
        """Make room for the weights of another model, see `KVMemory.shrink`."""
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
        self.scheduler.remove(name)
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
        return {
            lane.model: ModelStats(
                num_running=len(lane.running),
                num_waiting=len(lane.waiting),
                kv_blocks_total=lane.kv.pool.num_blocks,
                kv_blocks_used=lane.kv.pool.num_used,
                prefix_cache_queries=lane.kv.prefix_cache.num_queried_tokens,
                prefix_cache_hits=lane.kv.prefix_cache.num_hit_tokens,
                num_preemptions=lane.num_preemptions,
                prompt_tokens=lane.num_prompt_tokens,
                generation_tokens=lane.num_generation_tokens,
            )
            for lane in self.scheduler.generation_lanes.values()
        } | {
            lane.model: ModelStats(0, len(lane.unfinished), 0, 0, 0, 0, 0, lane.num_prompt_tokens, 0)
            for lane in self.scheduler.embedding_lanes.values()
        }

    # -------------------------------------------------------------------------------------------------------- jobs

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return self.scheduler.has_work

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
            RequestError: it can never be served; nothing was queued.
        """
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
                )
            )

    def cancel(self, request_id: str) -> None:
        """Forget a job; unknown ids are ignored."""
        self.scheduler.cancel(request_id)
        self._embedding_results.pop(request_id, None)

    # -------------------------------------------------------------------------------------------------------- step

    def step(self) -> StepResult:
        """Schedule, run and sample once."""
        started = time.perf_counter()
        plan = self.scheduler.schedule()
        outputs: list[RequestOutput] = []
        embeddings: list[EmbeddingOutput] = []
        for batch in plan.generation:
            outputs += self._run_generation(batch)
        for embedding_batch in plan.embedding:
            embeddings += self._run_embedding(embedding_batch)
        return StepResult(outputs, embeddings, time.perf_counter() - started, plan.num_batched_tokens)

    def _run_generation(self, batch: GenerationBatch) -> list[RequestOutput]:
        now = time.time()
        for row in batch.rows:
            row.request.first_scheduled_time = row.request.first_scheduled_time or now
        started = time.perf_counter()
        try:
            sampled = self._generation[batch.model].execute(batch)
        except Exception:  # whatever the model did, the other models and later requests go on
            logger.exception("a step of %s failed with %d requests in it", batch.model, len(batch.rows))
            return self._fail_batch(batch)
        num_streams = sum(row.num_tokens == 1 for row in batch.rows)
        self._observe(batch.model, num_streams, batch.num_tokens - num_streams, started)
        sampling_rows = [row for row in batch.rows if row.samples]
        outputs = [_sign_of_life(row) for row in batch.rows if not row.samples]
        for row in batch.rows:
            self.scheduler.advance(row)
        now = time.time()
        return outputs + [self._append(row, token, now) for row, token in zip(sampling_rows, sampled, strict=True)]

    def _observe(self, model: str, num_streams: int, num_tokens: int, started: float) -> None:
        """Let the scheduler learn what a batch took: it has no clock of its own."""
        self.scheduler.pace.observe(model, num_streams, num_tokens, time.perf_counter() - started)

    def _fail_batch(self, batch: GenerationBatch) -> list[RequestOutput]:
        """End every request of a failed batch; its blocks may hold anything, so the prefix cache forgets all."""
        lane = self.scheduler.generation_lanes[batch.model]
        lane.kv.prefix_cache.clear()
        for row in batch.rows:
            self.scheduler.finish(row.request)
        return [
            RequestOutput(row.request.request_id, [], finish_reason="error", error=_STEP_FAILED) for row in batch.rows
        ]

    def _append(self, row: ScheduledRow, token: SampledToken, now: float) -> RequestOutput:
        """Add the sampled token to its request and end the request if it is complete."""
        request = row.request
        matcher = request.matcher
        if matcher is not None and not matcher.accept(token.token_id):
            return self._fail(request, invalid_grammar(matcher.error))
        prompt_logprobs = request.prompt_logprobs if request.needs_prompt_logprobs else None
        request.token_ids.append(token.token_id)
        request.first_token_time = request.first_token_time or now
        self.scheduler.generation_lanes[request.model].num_generation_tokens += 1
        output = RequestOutput(
            request_id=request.request_id,
            token_ids=[token.token_id],
            num_cached_tokens=request.num_cached_tokens,
            logprobs=[token.logprobs] if token.logprobs else None,
            prompt_logprobs=prompt_logprobs,
        )
        is_stop = self._is_stop_token(request, token.token_id) or (matcher is not None and matcher.ended_by_token)
        stop_token_id = token.token_id if is_stop else None
        is_complete = is_stop or (matcher is not None and matcher.is_complete)
        if not is_complete and request.num_output_tokens < request.sampling.max_tokens:
            return output
        self.scheduler.finish(request)
        return replace(
            output,
            finish_reason="stop" if is_complete else "length",
            stop_token_id=stop_token_id,
            timings=JobTimings(
                queued=request.first_scheduled_time - request.arrival_time,
                prefill=request.first_token_time - request.first_scheduled_time,
                decode=now - request.first_token_time,
                num_preemptions=request.num_preemptions,
            ),
        )

    def _fail(self, request: Request, error: RequestError) -> RequestOutput:
        """End one request for a reason of its own."""
        self.scheduler.finish(request)
        failure = JobError(error.message, error.code, param_of(error, request.sampling))
        return RequestOutput(request.request_id, [], finish_reason="error", error=failure)

    def _is_stop_token(self, request: Request, token_id: int) -> bool:
        params = request.sampling
        if request.num_output_tokens < params.min_tokens:
            return False
        if token_id in params.stop_token_ids:
            return True
        return not params.ignore_eos and token_id in self._generation[request.model].eos_token_ids

    def _run_embedding(self, batch: EmbeddingBatch) -> list[EmbeddingOutput]:
        lane = self.scheduler.embedding_lanes[batch.model]
        runner = self._embedding[batch.model]
        try:
            vectors = runner.execute(
                [item.token_ids for item in batch.inputs], [item.second_start for item in batch.inputs]
            )  # [inputs, dim] float32
        except Exception:
            logger.exception("a step of %s failed with %d inputs in it", batch.model, len(batch.inputs))
            return self._fail_embeddings({item.request_id for item in batch.inputs})
        touched: dict[str, EmbeddingJob] = {}
        for item, vector in zip(batch.inputs, vectors, strict=True):
            job = touched[item.request_id] = lane.unfinished[item.request_id]
            if item.request_id not in self._embedding_results:
                self._embedding_results[item.request_id] = np.empty((job.num_inputs, runner.output_dim), np.float32)
            self._embedding_results[item.request_id][item.index] = vector
        outputs = []
        for job in touched.values():
            if not job.remaining:
                result = self._embedding_results.pop(job.request_id)
                outputs.append(EmbeddingOutput(job.request_id, result.shape[1], result.tobytes()))
                self.scheduler.finish_embedding(job)
        return outputs

    def _fail_embeddings(self, request_ids: set[str]) -> list[EmbeddingOutput]:
        for request_id in request_ids:
            self.cancel(request_id)
        return [EmbeddingOutput(request_id, 0, b"", error=_STEP_FAILED) for request_id in sorted(request_ids)]


def _sign_of_life(row: ScheduledRow) -> RequestOutput:
    """The output of a row that does not reach the end of its request's tokens: how much of the prompt is computed."""
    request = row.request
    return RequestOutput(
        request.request_id,
        [],
        num_cached_tokens=request.num_cached_tokens,
        num_computed_tokens=min(row.end, len(request.prompt_token_ids)),
    )
