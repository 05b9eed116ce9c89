"""The engine: token ids in, token ids out, one synchronous step at a time, for all models of one device.

`add`, `cancel` and `step` are everything a caller needs; there is no input or output here, no thread and no clock but
the one that stamps timings. The device worker drives it in a process of its own, tests and benchmarks in theirs.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from . import device
from .config import EngineConfig, ModelKind, ModelSpec
from .embedding import EmbeddingRunner
from .encoder import EncoderRunner
from .errors import ModelLoadError, RequestError, UnknownModelError
from .grammar import Grammar, GrammarCompiler, invalid_grammar
from .kv_cache import KVCacheManager
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
from .plan import EmbeddingBatch, GenerationBatch, SampledToken, ScheduledRow
from .policy import EmbeddingJob
from .request import Request
from .runner import GenerationRunner
from .scheduler import EmbeddingLane, GenerationLane, Scheduler
from .scoring import ScoringRunner

logger = logging.getLogger(__name__)

_STEP_FAILED = JobError(
    "The model failed while computing this request; the server's log says why.", code="internal_error", status=500
)

_ENCODERS: dict[ModelKind, type[EncoderRunner]] = {"embed": EmbeddingRunner, "score": ScoringRunner}

Progress = Callable[[str, float], None]
"""Called with what is going on and how much of it is done, 0 to 1."""


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
        self.scheduler = Scheduler(
            max_num_seqs=self.config.max_num_seqs, max_num_batched_tokens=self.config.max_num_batched_tokens
        )
        self._generation: dict[str, GenerationRunner] = {}
        self._embedding: dict[str, EncoderRunner] = {}
        self._embedding_results: dict[
            str, np.ndarray
        ] = {}  # request id -> [num inputs, dim], filled over several steps

    # ------------------------------------------------------------------------------------------------------ models

    def load(self, spec: ModelSpec, progress: Progress = lambda stage, fraction: None) -> None:
        """Load one model's weights. It serves after `allocate`, which divides the memory among all that are loaded.

        Raises:
            ModelLoadError: with the reason.
        """
        if spec.name in self._generation or spec.name in self._embedding:
            raise ModelLoadError(f"there is already a model with the name {spec.name}")
        if spec.kind == "generate":
            self._generation[spec.name] = GenerationRunner.load(spec, self.config, progress)
        else:
            runner = _ENCODERS[spec.kind].load(spec, self.config, progress)
            self._embedding[spec.name] = runner
            self.scheduler.embedding_lanes[spec.name] = EmbeddingLane(spec.name, runner.max_model_len)

    def allocate(self) -> dict[str, str]:
        """Give every generation model its KV blocks, equal shares of memory, and run each once to warm it up.

        Returns:
            The models that could not be given any, which are dropped, each with the reason.
        """
        failures = {}
        if self._generation:
            memory = self.config.kv_cache_memory or device.memory_for_kv_cache(self.config)
            share = memory // len(self._generation)
            for name in list(self._generation):
                try:
                    self._allocate(name, share)
                except ModelLoadError as error:
                    failures[name] = str(error)
                except Exception as error:  # no memory, a kernel that does not compile: the other models go on
                    logger.exception("%s could not be given its KV cache", name)
                    failures[name] = f"{type(error).__name__}: {error}"
                if name in failures:
                    del self._generation[name]
        return failures

    def _allocate(self, name: str, memory: int) -> None:
        runner = self._generation[name]
        useful_blocks = self.config.max_num_seqs * -(-runner.max_model_len // self.config.block_size)
        num_blocks = min(memory // runner.kv_bytes_per_block, useful_blocks)
        if num_blocks < 1:
            raise ModelLoadError(
                f"one KV block of {name} takes {runner.kv_bytes_per_block} bytes, but its share of the KV cache "
                f"memory is {memory}; raise kv_cache_memory"
            )
        runner.allocate_kv_cache(num_blocks)
        runner.warm_up()
        kv = KVCacheManager(num_blocks, self.config.block_size, enable_prefix_caching=self.config.enable_prefix_caching)
        self.scheduler.generation_lanes[name] = GenerationLane(name, kv, runner.max_model_len)

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
            _check_token_ids([job.prompt_token_ids, job.output_token_ids], self._generation[job.model].vocab_size)
            request = Request.from_submit(job)
            if job.sampling.grammar:
                grammar = grammar or grammars.compile(job.sampling.grammar)
                request.matcher = grammar.start(job.output_token_ids)
            self.scheduler.add(request)
        else:
            if job.model not in self.scheduler.embedding_lanes:
                raise UnknownModelError(f"no embedding model {job.model} is resident")
            _check_token_ids(job.inputs, self._embedding[job.model].vocab_size)
            _check_second_starts(job)
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
        try:
            sampled = self._generation[batch.model].execute(batch)
        except Exception:  # whatever the model did, the other models and later requests go on
            logger.exception("a step of %s failed with %d requests in it", batch.model, len(batch.rows))
            return self._fail_batch(batch)
        sampling_rows = [row for row in batch.rows if row.samples]
        for row in batch.rows:
            self.scheduler.advance(row)
        now = time.time()
        return [self._append(row, token, now) for row, token in zip(sampling_rows, sampled, strict=True)]

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
        request.token_ids.append(token.token_id)
        request.first_token_time = request.first_token_time or now
        self.scheduler.generation_lanes[request.model].num_generation_tokens += 1
        output = RequestOutput(
            request_id=request.request_id,
            token_ids=[token.token_id],
            num_cached_tokens=request.num_cached_tokens,
            logprobs=[token.logprobs] if token.logprobs else None,
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
        failure = JobError(error.message, error.code, error.param)
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


def _check_token_ids(sequences: list[list[int]], vocab_size: int) -> None:
    """Refuse ids without an embedding: on a GPU one of them would end the process, on a CPU everybody's step."""
    for token_ids in sequences:
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
            bad = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
            raise RequestError(f"token id {bad} is not in the vocabulary, whose ids are 0 to {vocab_size - 1}")


def _check_second_starts(job: Embed) -> None:
    """Refuse a job whose pairs are not all there, or would end before they start."""
    if not job.second_starts:
        return
    if len(job.second_starts) != len(job.inputs):
        raise RequestError(f"there are {len(job.inputs)} inputs, but {len(job.second_starts)} starts of second texts")
    for token_ids, start in zip(job.inputs, job.second_starts, strict=True):
        if not 0 <= start <= len(token_ids):
            raise RequestError(f"a second text starts at {start} in an input of {len(token_ids)} tokens")
