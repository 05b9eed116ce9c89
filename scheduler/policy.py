"""In which order jobs are served: the principal that has had least first, then by priority, then by arrival.

The order changes whenever a token is dealt out, since the accounts of principals do. Their counters only rise, so a
queue keeps its principals in a heap under keys that may be too small, and puts right what comes up.
"""

import heapq
from collections.abc import Iterable, Sequence

from .accounts import Accounts
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
        weight: float = 1.0,
    ) -> None:
        self.request_id = request_id
        self.model = model
        self.arrival_time = arrival_time
        self.principal = principal
        self.weight = weight
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

    def put_back(self, inputs: Iterable[EmbeddingInput]) -> None:
        """Texts of the job were not computed after all."""
        self.remaining += inputs
        self.remaining.sort(key=lambda item: -len(item.token_ids))


Job = Request | EmbeddingJob
SortKey = tuple[float | int, ...]


_MAX_STALE = 16  # entries of a heap that were removed, beyond as many as there are others


class _Line:
    """The jobs of one principal in a queue, by priority and arrival."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.entry: tuple[SortKey, str] | None = None
        """The one in the queue's heap that stands for it."""
        self._heap: list[tuple[SortKey, str]] = []

    def push(self, job: Job) -> None:
        self.jobs[job.request_id] = job
        heapq.heappush(self._heap, ((job.priority, job.arrival_time, job.sequence), job.request_id))

    def first(self) -> Job:
        """The earliest job; entries of removed jobs are dropped on the way."""
        while self._heap[0][1] not in self.jobs:
            heapq.heappop(self._heap)
        return self.jobs[self._heap[0][1]]

    def remove(self, request_id: str) -> None:
        del self.jobs[request_id]
        if len(self._heap) > 2 * len(self.jobs) + _MAX_STALE:
            self._heap = [entry for entry in self._heap if entry[1] in self.jobs]
            heapq.heapify(self._heap)


class JobQueue:
    """The waiting jobs of one model; the queues of all models share the accounts of their principals."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self._principal_of: dict[str, str] = {}
        """Of every waiting job."""
        self._lines: dict[str, _Line] = {}
        self._heap: list[tuple[SortKey, str]] = []
        """Lines by the key of their first job, or a smaller one that it had earlier."""

    def __len__(self) -> int:
        return len(self._principal_of)

    def push(self, job: Job) -> None:
        """Add a job of a principal with an account; a preempted request comes back to its place by arrival."""
        line = self._lines.get(job.principal)
        if line is None:
            line = self._lines[job.principal] = _Line()
            self.accounts.begin_waiting(job.principal)
        self._principal_of[job.request_id] = job.principal
        line.push(job)
        if line.first() is job:
            line.entry = (self.key(job), job.principal)
            heapq.heappush(self._heap, line.entry)
            self._drop_stale()

    def peek(self) -> Job:
        """The job that should run next; the queue is not empty."""
        while True:
            entry = self._heap[0]
            line = self._lines.get(entry[1])
            if line is None or entry is not line.entry:
                heapq.heappop(self._heap)
                continue
            job = line.first()
            key = self.key(job)
            if key == entry[0]:
                return job
            line.entry = (key, job.principal)
            heapq.heapreplace(self._heap, line.entry)

    def pop(self) -> Job:
        """Remove and return what `peek` shows."""
        job = self.peek()
        self.remove(job.request_id)
        return job

    def remove(self, request_id: str) -> Job | None:
        """Remove a cancelled job; None if it does not wait here."""
        principal = self._principal_of.pop(request_id, None)
        if principal is None:
            return None
        line = self._lines[principal]
        job = line.jobs[request_id]
        line.remove(request_id)
        if not line.jobs:
            del self._lines[principal]
            self.accounts.end_waiting(principal)
            self._drop_stale()
        return job

    def key(self, job: Job) -> SortKey:
        """The job's place in the order now; smaller runs earlier. Comparable between queues, and never equal."""
        return (self.accounts.counter(job.principal), job.priority, job.arrival_time, job.sequence)

    def charge(self, job: Job, cost: float) -> None:
        """Something was computed for the job, see `Accounts.charge`."""
        self.accounts.charge(job.principal, cost)

    def _drop_stale(self) -> None:
        if len(self._heap) > 2 * len(self._lines) + _MAX_STALE:
            self._heap = [line.entry for line in self._lines.values() if line.entry is not None]
            heapq.heapify(self._heap)
