"""Finds the jobs that have waited or run for too long, without looking at all of them in every step."""

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

from .config import EngineConfig
from .messages import Embed, JobError, Submit
from .scheduler import Scheduler

_MAX_DEAD = 1024  # deadlines of jobs that are over, beyond which they are dropped before their time


@dataclass(frozen=True, slots=True, order=True)
class _Deadline:
    time: float
    request_id: str
    model: str
    is_embedding: bool
    is_for_start: bool
    """Whether it only counts until something of the job was scheduled."""


@dataclass(frozen=True, slots=True)
class LateJob:
    """A job whose time is over."""

    request_id: str
    is_embedding: bool
    error: JobError


class Deadlines:
    """When each job must have started, and when it must be over.

    Args:
        config: has the two timeouts.
        scheduler: knows which jobs wait, run or are over.
        clock: monotonic seconds.
    """

    def __init__(self, config: EngineConfig, scheduler: Scheduler, clock: Callable[[], float]) -> None:
        self._queue_timeout = config.queue_timeout
        self._request_timeout = config.request_timeout
        self._scheduler = scheduler
        self._clock = clock
        self._heap: list[_Deadline] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, job: Submit | Embed) -> None:
        """Watch a job that the scheduler has; one that is resumed has not waited for this worker yet."""
        now = self._clock()
        arrival = now - max(0.0, time.time() - job.arrival_time)
        if self._queue_timeout:
            self._push(job, (now if job.is_resumed else arrival) + self._queue_timeout, is_for_start=True)
        if self._request_timeout:
            self._push(job, arrival + self._request_timeout, is_for_start=False)

    def late(self) -> list[LateJob]:
        """Jobs whose deadline has passed, each once; the caller ends them."""
        now = self._clock()
        found: dict[str, LateJob] = {}
        while self._heap and self._heap[0].time <= now:
            deadline = heapq.heappop(self._heap)
            if deadline.request_id not in found and self._counts(deadline):
                found[deadline.request_id] = self._end(deadline)
        return list(found.values())

    def _push(self, job: Submit | Embed, at: float, *, is_for_start: bool) -> None:
        if len(self._heap) > _MAX_DEAD and len(self._heap) > 4 * self._scheduler.num_jobs:
            self._heap = [deadline for deadline in self._heap if self._counts(deadline)]
            heapq.heapify(self._heap)
        deadline = _Deadline(at, job.request_id, job.model, isinstance(job, Embed), is_for_start)
        heapq.heappush(self._heap, deadline)

    def _counts(self, deadline: _Deadline) -> bool:
        if deadline.is_for_start:
            return self._scheduler.admission.is_waiting(deadline.request_id)
        return self._scheduler.has_job(deadline.request_id)

    def _end(self, deadline: _Deadline) -> LateJob:
        admission = self._scheduler.admission
        if deadline.is_for_start:
            wait = admission.expected_wait(deadline.model)
            error = JobError(
                f"The request was not started within {self._queue_timeout:g} s, the server's --queue-timeout. "
                f"Please try again in {wait:.1f}s.",
                "queue_timeout",
                status=503,
                retry_after=wait,
            )
        else:
            error = JobError(
                f"The request was not complete within {self._request_timeout:g} s, the server's --request-timeout. "
                "Ask for fewer tokens or send less input.",
                "request_timeout",
                status=504,
            )
        admission.count_refusal(deadline.model, error.code)
        return LateJob(deadline.request_id, deadline.is_embedding, error)
