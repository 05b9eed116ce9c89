"""Jobs that are computed in steps which hold nothing else, because one of them may end whatever step it is in.

A step failed with them in it, or a worker died. Whoever brings down such a step once more is the one at fault; the
others have their first new result after it, and are jobs like any other again.
"""

from .policy import Job
from .request import Request, RequestStatus


class AloneJobs:
    """The jobs that have yet to come through a step of their own, in the order in which they came.

    One job is computed at a time, until its first result: only one holds blocks. Its steps take turns with those of all
    other jobs, so that running streams go on.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._had_turn = False

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def first(self) -> Job:
        """The one that the next lone step is for; there is one."""
        return next(iter(self._jobs.values()))

    def add(self, job: Job) -> None:
        """A job is to be computed alone; one that is already here keeps its place."""
        job.alone = True
        self._jobs.setdefault(job.request_id, job)

    def discard(self, request_id: str) -> Job | None:
        """The job is over or has come through; None if it is not here."""
        job = self._jobs.pop(request_id, None)
        if job is not None:
            job.alone = False
        return job

    def is_next(self, num_others: int) -> bool:
        """Whether the next step is for the first of these, when there are so many other jobs."""
        return bool(self._jobs) and not (self._had_turn and num_others)

    def take_turn(self, num_others: int) -> bool:
        """`is_next`, for the step that is made now."""
        self._had_turn = self.is_next(num_others)
        return self._had_turn

    def of_model(self, model: str) -> list[Job]:
        """Those of one model."""
        return [job for job in self._jobs.values() if job.model == model]

    def num_waiting(self, model: str) -> int:
        """Those of a generation model that hold no blocks."""
        return sum(isinstance(job, Request) and job.status is RequestStatus.WAITING for job in self.of_model(model))
