"""In which order waiting jobs start, and which running request gives way when KV blocks run out."""

import heapq
from collections.abc import Iterable, Sequence
from typing import Protocol

from .plan import EmbeddingInput
from .request import Request


class EmbeddingJob:
    """One embedding request: its texts that have not been computed yet, shortest first."""

    def __init__(
        self,
        request_id: str,
        model: str,
        inputs: list[list[int]],
        arrival_time: float,
        principal: str = "",
        priority: int = 0,
        second_starts: Sequence[int] = (),
        alone: bool = False,
        is_resumed: bool = False,
    ) -> None:
        self.request_id = request_id
        self.model = model
        self.arrival_time = arrival_time
        self.principal = principal
        self.priority = priority
        self.alone = alone  # see Request.alone
        self.is_resumed = is_resumed
        self.group = ""  # one job holds all inputs of its request
        self.sequence = 0  # see Request.sequence
        self.num_inputs = len(inputs)
        by_length = sorted(range(len(inputs)), key=lambda index: -len(inputs[index]))
        starts = second_starts or [len(token_ids) for token_ids in inputs]
        self.remaining = [EmbeddingInput(request_id, index, inputs[index], starts[index]) for index in by_length]
        """Longest first, so that the shortest is popped from the end."""


Job = Request | EmbeddingJob
SortKey = tuple[float | int, ...]


class JobQueue(Protocol):
    """The waiting jobs of one model, in a policy's order.

    A policy keeps its accounts (virtual tokens of a principal, say) in an object that the queues of all models share,
    and learns of every token dealt out through `charge`.
    """

    def __len__(self) -> int: ...

    def push(self, job: Job) -> None:
        """Add a job; a preempted request comes back with its original arrival time."""

    def peek(self) -> Job:
        """The job that should run next; the queue is not empty."""

    def pop(self) -> Job:
        """Remove and return what `peek` shows."""

    def remove(self, request_id: str) -> Job | None:
        """Remove a cancelled job; None if it does not wait here."""

    def key(self, job: Job) -> SortKey:
        """The job's place in the order; smaller runs earlier. Comparable between queues of one policy, never equal.

        Of two requests that both need a block, the one with the smaller key may preempt the other: with equal keys
        neither could, and both would wait for ever.
        """

    def charge(self, job: Job, num_tokens: int) -> None:
        """Tokens were dealt to the job."""


class FifoQueue:
    """First come, first served within a priority."""

    def __init__(self) -> None:
        self._heap: list[tuple[SortKey, str]] = []
        self._jobs: dict[str, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def push(self, job: Job) -> None:
        """Add a job at its place by priority and arrival."""
        self._jobs[job.request_id] = job
        heapq.heappush(self._heap, (self.key(job), job.request_id))

    def peek(self) -> Job:
        """The earliest job; entries of removed jobs are dropped on the way."""
        while self._heap[0][1] not in self._jobs:
            heapq.heappop(self._heap)
        return self._jobs[self._heap[0][1]]

    def pop(self) -> Job:
        """Remove and return the earliest job."""
        job = self.peek()
        heapq.heappop(self._heap)
        return self._jobs.pop(job.request_id)

    def remove(self, request_id: str) -> Job | None:
        """Forget a job; its heap entry goes when it comes up."""
        return self._jobs.pop(request_id, None)

    def key(self, job: Job) -> SortKey:
        """Priority, then arrival, then the order in which the scheduler learned of them."""
        return (job.priority, job.arrival_time, job.sequence)

    def charge(self, job: Job, num_tokens: int) -> None:
        """First come, first served keeps no accounts."""


def choose_victim(candidates: Iterable[Request], queue: JobQueue) -> Request | None:
    """The running request that should be preempted first: the one that would run last."""
    return max(candidates, key=queue.key, default=None)
