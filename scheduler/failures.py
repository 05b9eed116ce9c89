"""What becomes of the jobs of a step that failed: the one at fault is found and ends, all others go on.

Nobody knows which job of a step is at fault. So all of them are computed again, each alone (`alone`), and whoever makes
a step fail that holds nothing else ends with an error. If the device ran out of memory, nobody is at fault as long as
smaller steps can be tried (`step_limit`). What a failed step may have written to the KV cache is found by nobody:
requests go on from the blocks that were full before it, and since sampling is keyed by position, with the same tokens.

It ends: every failure of a step with a single job ends the job, every other one makes steps smaller or sends jobs into
steps of their own, and those that come through have a token more. A model that fails whatever it is given is not tried
with every job.
"""

import logging
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import device
from .messages import EmbeddingOutput, JobError, RequestOutput
from .outputs import STEP_FAILED
from .plan import EmbeddingBatch, GenerationBatch
from .policy import EmbeddingJob, Job
from .request import RequestStatus
from .scheduler import Scheduler
from .vectors import VectorCollector

logger = logging.getLogger(__name__)

Batch = GenerationBatch | EmbeddingBatch

MAX_LONE_FAILURES = 16
"""Jobs that may fail alone, one after the other, before a model is taken to be broken."""
_MAX_UNEXPLAINED = 2  # steps that fail though none of their jobs did alone, before it is taken to be their size

OUT_OF_MEMORY = JobError(
    "The device has not enough memory to compute even the smallest part of this request; send it again later, or a "
    "shorter one.",
    code="out_of_memory",
    status=503,
)


@dataclass(slots=True)
class Endings:
    """What the clients of jobs that end hear."""

    outputs: list[RequestOutput] = field(default_factory=list)
    embeddings: list[EmbeddingOutput] = field(default_factory=list)


class StepFailures:
    """Judges failed steps, and remembers what their models did before."""

    def __init__(self, scheduler: Scheduler, vectors: VectorCollector, device_name: str) -> None:
        self._scheduler = scheduler
        self._vectors = vectors
        self._device = device_name
        self._num_lone: Counter[str] = Counter()
        """By model, jobs that failed alone since a step of it came through."""
        self._num_too_large: Counter[str] = Counter()
        """By model, steps without enough memory since a step of it came through."""
        self._num_unexplained: Counter[str] = Counter()
        """By model, failed steps of several jobs since one of its jobs failed alone."""

    def note_success(self, model: str) -> None:
        """A step of a model came through."""
        self._num_lone.pop(model, None)
        self._num_too_large.pop(model, None)
        self._scheduler.limit.grow()

    def forget(self, model: str) -> None:
        """The model is unloaded; another may come under its name."""
        self._num_lone.pop(model, None)
        self._num_too_large.pop(model, None)
        self._num_unexplained.pop(model, None)

    def judge(self, error: Exception, batch: Batch, later: Sequence[GenerationBatch] = ()) -> Endings:
        """Find out what becomes of the jobs of a batch.

        Args:
            error: what it failed with.
            batch: one model's share of a step.
            later: what was launched of the same model after it, and will not be collected: it may have read what the
                batch should have left in the KV cache.

        Raises:
            DeviceFailedError: the device computes nothing any more.
        """
        device.check_works(self._device, error)
        suspects = self._undo(batch)
        for each in later:
            for job in self._undo(each):
                if job not in suspects:
                    self._scheduler.requeue(job)
        if isinstance(batch, GenerationBatch):
            self._requeue_misled(batch, suspects)
        logger.error("a step of %s failed with %d jobs in it", batch.model, len(suspects), exc_info=error)
        if not suspects:
            return Endings()
        if device.is_out_of_memory(error):
            return self._give_less(error, batch, suspects)
        if _num_jobs(batch) == 1:
            return self._end_guilty(batch.model, suspects[0])
        self._num_unexplained[batch.model] += 1
        if self._num_unexplained[batch.model] > _MAX_UNEXPLAINED:
            self._scheduler.limit.halve(batch.num_tokens)
        for job in suspects:
            self._scheduler.isolate(job)
        return Endings()

    def _undo(self, batch: Batch) -> list[Job]:
        """Take back what a batch did to its jobs; those that are not over."""
        if isinstance(batch, EmbeddingBatch):
            unfinished = self._scheduler.embedding_lanes[batch.model].unfinished
            jobs = {
                item.request_id: unfinished[item.request_id] for item in batch.inputs if item.request_id in unfinished
            }
            for job in jobs.values():
                job.put_back([item for item in batch.inputs if item.request_id == job.request_id])
            return list(jobs.values())
        kv = self._scheduler.generation_lanes[batch.model].kv
        for row in batch.rows:
            kv.forget_from(row.request, row.start)
            row.request.num_pending_tokens = 0
        return [row.request for row in batch.rows if row.request.status is not RequestStatus.FINISHED]

    def _requeue_misled(self, batch: GenerationBatch, suspects: Sequence[Job]) -> None:
        """Start those again that have found in the prefix cache what the batch should have computed.

        Who has a row launched since is known by that; others may have got their blocks and no room in the step.
        """
        lane = self._scheduler.generation_lanes[batch.model]
        doubtful: set[bytes] = set()
        for row in batch.rows:
            doubtful.update(row.request.block_hashes[row.start // lane.kv.block_size :])
        for request in list(lane.running.values()):
            if request not in suspects and not doubtful.isdisjoint(request.block_hashes[: request.num_shared_blocks]):
                self._scheduler.requeue(request)

    def _give_less(self, error: Exception, batch: Batch, suspects: list[Job]) -> Endings:
        """The batch did not fit into memory: try smaller ones, then each job alone, unless it was that already."""
        traceback.clear_frames(error.__traceback__)  # they hold what the step had allocated so far
        device.return_memory(self._device)
        is_smallest = len(batch.inputs) == 1 if isinstance(batch, EmbeddingBatch) else batch.num_tokens == 1
        if is_smallest:
            self._scheduler.limit.lift()
            return self._end(suspects, OUT_OF_MEMORY)
        self._scheduler.limit.halve(batch.num_tokens)
        self._num_too_large[batch.model] += 1
        is_first = self._num_too_large[batch.model] == 1
        for job in suspects:
            if is_first or len(suspects) == 1:
                self._scheduler.requeue(job)
            else:
                self._scheduler.isolate(job)
        return Endings()

    def _end_guilty(self, model: str, job: Job) -> Endings:
        """A job failed alone: it is at fault, or the model is broken."""
        self._num_unexplained.pop(model, None)
        self._num_lone[model] += 1
        if self._num_lone[model] < MAX_LONE_FAILURES:
            return self._end([job], STEP_FAILED)
        logger.error(
            "%s failed with %d jobs one after the other: those that wait for it fail too", model, self._num_lone[model]
        )
        return self._end([job, *(each for each in self._scheduler.isolated(model) if each is not job)], STEP_FAILED)

    def _end(self, jobs: Sequence[Job], error: JobError) -> Endings:
        endings = Endings()
        for job in jobs:
            self._scheduler.cancel(job.request_id)
            self._vectors.forget(job.request_id)
            if isinstance(job, EmbeddingJob):
                endings.embeddings.append(EmbeddingOutput(job.request_id, 0, b"", error=error))
            else:
                endings.outputs.append(RequestOutput(job.request_id, [], finish_reason="error", error=error))
        return endings


def _num_jobs(batch: Batch) -> int:
    """Jobs in a batch, those included that are over meanwhile: any of them may have been at fault."""
    if isinstance(batch, EmbeddingBatch):
        return len({item.request_id for item in batch.inputs})
    return len(batch.rows)
