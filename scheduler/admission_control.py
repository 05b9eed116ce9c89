"""Bounds the work that waits: who may queue a job, and when a client that is refused should come back.

Every model has its own queue: what it takes up in a second differs between models by orders of magnitude, and an
archive to embed must not keep chats out. A queue is full when it has as many requests as the setting says, or more
tokens than the model takes up in half of the queue timeout, at the pace of the last seconds (or the number that was
set). Half, since that pace changes: a job that is let in should hardly ever time out.

Each principal that waits is sure of an equal share of the queue: one that fills it keeps nobody out, and what nobody
else uses is open to all. The queue may so become longer than its bound for a while, by the shares of those who came
after it was full. Their wait does not: fair share serves them as if the others were not there.

A job is here from its arrival to its end, but counts as waiting only until it is first scheduled: preempted requests
were let in before.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .config import EngineConfig
from .errors import QueueFullError
from .messages import Submit
from .plan import StepPlan
from .policy import Job
from .queue_meter import DrainMeter

LEAST_STEPS = 32
"""Full steps of tokens that a queue takes in whatever its pace, when that bounds it."""
MAX_RETRY_AFTER = 60.0
"""Seconds; the clients' libraries take no longer wait from a server."""
_UNKNOWN_WAIT = 2.0  # seconds to wait for a queue whose pace is not known yet
_LEAST_WAIT = 0.1


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """When a model's queue is full; 0: never."""

    max_requests: int = 0
    max_tokens: int = 0
    """0: as many as are taken up in half of the timeout."""
    timeout: float = 0.0
    """Seconds that a job may wait."""
    least_tokens: int = 0
    """Fewer are never too many where the pace decides."""

    @classmethod
    def of(cls, config: EngineConfig) -> "QueueLimits":
        """What the configuration of an engine says, which is resolved."""
        return cls(
            max_requests=config.max_waiting_requests,
            max_tokens=config.max_waiting_tokens,
            timeout=config.queue_timeout,
            least_tokens=LEAST_STEPS * config.max_num_batched_tokens,
        )


@dataclass(slots=True)
class _Waiting:
    """What waits of one principal or, added up, of all."""

    num_jobs: int = 0
    num_tokens: int = 0

    def add(self, num_jobs: int, num_tokens: int) -> None:
        self.num_jobs += num_jobs
        self.num_tokens += num_tokens


class _Queue:
    """The waiting work of one model."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.total = _Waiting()
        self.of_principal: dict[str, _Waiting] = {}
        self.num_reserved = 0
        """Jobs that have a place and are not ready to be scheduled."""
        self.meter = DrainMeter(clock)
        self.refusals: Counter[str] = Counter()

    @property
    def has_backlog(self) -> bool:
        """Whether anything waits that a step could take up."""
        return self.total.num_jobs > self.num_reserved


@dataclass(slots=True)
class _Entry:
    """One unfinished job."""

    queue: _Queue
    principal: str
    group: str
    num_tokens: int
    """That still wait."""
    is_ready: bool
    has_started: bool = False


class AdmissionControl:
    """The waiting work of all models, and its bounds.

    Args:
        limits: of each model's queue.
        clock: seconds, for tests.
    """

    def __init__(self, limits: QueueLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits or QueueLimits()
        self._clock = clock
        self._queues: dict[str, _Queue] = {}
        self._entries: dict[str, _Entry] = {}
        self._groups: Counter[str] = Counter()

    # ------------------------------------------------------------------------------------------------ jobs in and out

    def enter(self, job: Submit | Job, num_tokens: int, *, is_ready: bool = True) -> None:
        """Let a job in; one that is in already stays, and is ready now.

        Args:
            job: whose it is and what it is part of.
            num_tokens: to compute before its first result, for all that is known: what the prefix cache has of them is
                found out later.
            is_ready: whether it can be scheduled; it enters again when it can.

        Raises:
            QueueFullError: there is no room; nothing was changed.
        """
        if (entry := self._entries.get(job.request_id)) is not None:
            entry.queue.num_reserved -= not entry.is_ready
            entry.is_ready = True
            return
        queue = self._queue_of(job.model)
        if not (job.is_resumed or (job.group and job.group in self._groups)):
            self._check(queue, job, num_tokens)
        queue.of_principal.setdefault(job.principal, _Waiting()).add(1, num_tokens)
        queue.total.add(1, num_tokens)
        self._entries[job.request_id] = _Entry(queue, job.principal, job.group, num_tokens, is_ready)
        queue.num_reserved += not is_ready
        if job.group:
            self._groups[job.group] += 1

    def take_up(self, plan: StepPlan) -> None:
        """A step was scheduled: what starts with it waits no more, and of the rest the pace is learnt."""
        for batch in plan.generation:
            for row in batch.rows:
                entry = self._entries.get(row.request.request_id)
                if entry is not None and entry.num_tokens:
                    self._start(entry, entry.num_tokens)
        for texts in plan.embedding:
            for item in texts.inputs:
                entry = self._entries.get(item.request_id)
                if entry is not None and entry.num_tokens:  # a text may come again after a step that failed
                    self._start(entry, min(len(item.token_ids), entry.num_tokens))
        for queue in self._queues.values():
            queue.meter.end_step(has_backlog=queue.has_backlog)

    def leave(self, request_id: str) -> None:
        """A job is over or cancelled; unknown ids are ignored."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return
        entry.queue.num_reserved -= not entry.is_ready
        if entry.num_tokens:
            self._subtract(entry, entry.num_tokens)
        if entry.group:
            self._groups[entry.group] -= 1
            if not self._groups[entry.group]:
                del self._groups[entry.group]
        if not entry.queue.has_backlog:
            entry.queue.meter.note_empty()

    def forget(self, model: str) -> None:
        """The model is unloaded, and has no jobs."""
        self._queues.pop(model, None)

    # --------------------------------------------------------------------------------------------------------- numbers

    def is_waiting(self, request_id: str) -> bool:
        """Whether a job is here of which nothing was scheduled yet."""
        entry = self._entries.get(request_id)
        return entry is not None and not entry.has_started

    def num_waiting_tokens(self, model: str) -> int:
        """Tokens of a model's jobs that have not started."""
        queue = self._queues.get(model)
        return queue.total.num_tokens if queue else 0

    def refusals(self, model: str) -> dict[str, int]:
        """How often jobs of a model were refused or ended by a timeout since it was loaded, by reason."""
        queue = self._queues.get(model)
        return dict(queue.refusals) if queue else {}

    def count_refusal(self, model: str, reason: str) -> None:
        """A job was refused or ended for want of time."""
        self._queue_of(model).refusals[reason] += 1

    def expected_wait(self, model: str) -> float:
        """Seconds in which what waits now is taken up, as far as it is known, within what a client may be told."""
        queue = self._queues.get(model)
        return _seconds(queue.total.num_tokens, queue.meter.rate) if queue else _LEAST_WAIT

    def _queue_of(self, model: str) -> _Queue:
        queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = _Queue(self._clock)
        return queue

    # --------------------------------------------------------------------------------------------------------- bounds

    def _check(self, queue: _Queue, job: Submit | Job, num_tokens: int) -> None:
        if not queue.total.num_jobs:
            return  # an empty queue takes whatever the model takes
        own = queue.of_principal.get(job.principal, _Waiting())
        share = 1 / (len(queue.of_principal) + (job.principal not in queue.of_principal))
        max_requests = self._limits.max_requests or math.inf
        if queue.total.num_jobs + 1 > max_requests and own.num_jobs + 1 > share * max_requests:
            mean = queue.total.num_tokens / queue.total.num_jobs
            excess = queue.total.num_jobs + 1 - max_requests, own.num_jobs + 1 - share * max_requests
            wait = self._wait(queue, excess[0] * mean, excess[1] * mean, share)
            counts = queue.total.num_jobs, int(max_requests), own.num_jobs, int(share * max_requests)
            self._refuse(queue, job.model, "requests", counts, wait)
        max_tokens = self._max_tokens(queue)
        total, mine = queue.total.num_tokens + num_tokens, own.num_tokens + num_tokens
        if total > max_tokens and own.num_jobs and mine > share * max_tokens:
            wait = self._wait(queue, total - max_tokens, mine - share * max_tokens, share)
            counts = queue.total.num_tokens, int(max_tokens), own.num_tokens, int(share * max_tokens)
            self._refuse(queue, job.model, "tokens", counts, wait, f" and this request has {num_tokens:,}")

    def _max_tokens(self, queue: _Queue) -> float:
        if self._limits.max_tokens:
            return self._limits.max_tokens
        rate = queue.meter.rate
        if rate is None or not self._limits.timeout:
            return math.inf
        return max(self._limits.least_tokens, rate * self._limits.timeout / 2)

    @staticmethod
    def _wait(queue: _Queue, excess: float, own_excess: float, share: float) -> float:
        """Seconds until there is room in the queue or in the principal's share of it, whichever comes first."""
        rate = queue.meter.rate
        return min(_seconds(excess, rate), _seconds(own_excess, None if rate is None else share * rate))

    @staticmethod
    def _refuse(
        queue: _Queue, model: str, what: str, counts: tuple[int, int, int, int], wait: float, new: str = ""
    ) -> None:
        """Say what is full: `counts` are what waits and its bound, then the principal's part of both."""
        queue.refusals[what] += 1
        total, limit, own, share = counts
        shared = f", {own:,} of them yours, of at most {share:,} while others wait" if share < limit else ""
        raise QueueFullError(
            f"The queue of {model} is full: {total:,} {what} wait of at most {limit:,}{shared}{new}. "
            f"Please try again in {wait:.1f}s.",
            retry_after=wait,
        )

    @classmethod
    def _start(cls, entry: _Entry, num_tokens: int) -> None:
        entry.has_started = True
        entry.queue.meter.take_up(num_tokens)
        cls._subtract(entry, num_tokens)

    @staticmethod
    def _subtract(entry: _Entry, num_tokens: int) -> None:
        entry.num_tokens -= num_tokens
        num_jobs = 0 if entry.num_tokens else 1
        own = entry.queue.of_principal[entry.principal]
        own.add(-num_jobs, -num_tokens)
        entry.queue.total.add(-num_jobs, -num_tokens)
        if not own.num_jobs:
            del entry.queue.of_principal[entry.principal]


def _seconds(num_tokens: float, rate: float | None) -> float:
    """To take up so many tokens, within what a client may be told."""
    seconds = _UNKNOWN_WAIT if rate is None else num_tokens / rate if rate else math.inf
    return min(MAX_RETRY_AFTER, max(_LEAST_WAIT, seconds))
