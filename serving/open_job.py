"""One unfinished job as the API process keeps it: what it has had, so that it can go on in another worker, and which
deaths of workers it was part of, so that a job that brings workers down does not do so for ever.

A first death is nobody's fault: all its jobs go on together. A job that was in the step at two of them is computed
alone until it has had a token. If the worker dies again, and did nothing else, the job is the one at fault.
"""

from dataclasses import replace
from typing import Generic, TypeVar

from penstock.scheduler.messages import Embed, EmbeddingOutput, JobError, RequestOutput, Submit

from .mailbox import Mailbox
from .worker_news import WorkerLost

_OutputT = TypeVar("_OutputT", RequestOutput, EmbeddingOutput)

ALONE_AFTER = 2
"""Deaths after which a job is computed alone."""
MAX_DEATHS = 5
"""Deaths after which a job is given up even if it was never seen alone in one."""
PROVEN_TOKENS = 16
"""New tokens that clear a job of the deaths before them."""


class WorkerLostError(Exception):
    """The worker died with the job in it; the job can go on in the next one."""


class OpenJob(Generic[_OutputT]):
    """A job and its way through one or several workers.

    Args:
        job: as it was asked for.

    Attributes:
        mailbox: takes what the worker of the moment sends; a new one for each worker.
        output_token_ids: what the job has had, over all workers.
        is_over: no worker has it any more.
    """

    def __init__(self, job: Submit | Embed) -> None:
        self.job = job
        self.mailbox: Mailbox[_OutputT] = Mailbox()
        self.output_token_ids: list[int] = []
        self.is_over = False
        self._was_sent = False
        self._num_deaths = 0
        self._num_tokens_at_death = 0
        self._num_tokens_at_start = 0
        """Tokens that it had when the worker of the moment got it."""
        self._num_cached_tokens = 0
        self._fault: JobError | None = None

    @property
    def is_suspect(self) -> bool:
        """Whether it is to be computed alone."""
        return self._num_deaths >= ALONE_AFTER

    def for_next_worker(self) -> Submit | Embed:
        """What a worker is sent, which is to go on where the one before was lost."""
        self.mailbox = Mailbox()
        self._num_tokens_at_start = len(self.output_token_ids)
        is_resumed, self._was_sent = self._was_sent, True
        if isinstance(self.job, Submit):
            tokens = self.job.output_token_ids + self.output_token_ids
            return replace(self.job, output_token_ids=tokens, is_resumed=is_resumed, alone=self.is_suspect)
        return replace(self.job, is_resumed=is_resumed, alone=self.is_suspect)

    def received(self, output: RequestOutput) -> RequestOutput:
        """Note an output, and make of one of a later worker what the first would have said."""
        if self._num_tokens_at_start:  # the prompt was computed by an earlier one, and that one said what it found
            output = replace(output, num_cached_tokens=self._num_cached_tokens, timings=None)
        self._num_cached_tokens = max(self._num_cached_tokens, output.num_cached_tokens)
        self.output_token_ids += output.token_ids
        return output

    def note_death(self, lost: WorkerLost) -> JobError | None:
        """The worker died; the answer is why the job does not go on, None: it does."""
        request_id = self.job.request_id
        if self._fault is not None or request_id not in lost.suspects:
            return self._fault
        if len(self.output_token_ids) - self._num_tokens_at_death >= PROVEN_TOKENS:
            self._num_deaths = 0
        self._num_deaths += 1
        self._num_tokens_at_death = len(self.output_token_ids)
        was_alone = lost.suspects == {request_id} and not lost.was_loading
        if (was_alone and self._num_deaths > 1) or self._num_deaths >= MAX_DEATHS:
            self._fault = JobError(
                f"The device worker died {self._num_deaths} times while it computed this request (the last time it "
                f"{lost.how}), so the request is not tried again. The server's log says more.",
                code="worker_crashed",
                status=500,
            )
        return self._fault
