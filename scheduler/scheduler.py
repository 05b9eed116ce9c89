"""Deals the tokens of each step out to the requests; knows counts and blocks, never tensors, text or a clock.

There is no prefill phase and no decode phase. Every request has tokens whose keys and values are not computed yet: one
if it is generating, many if it is new or was preempted. A step has a token budget. Requests that need a single token
come first, so that running streams keep their pace. What is left goes to prompts and to texts to embed, each in the
policy's order and half of it to each while both wait: the texts of a whole archive hold up no chat, nor chats them. It
is less than the budget while streams run, see `pace`. Chunked prefill, prefix-cache hits, preemption and resumption are
this arithmetic.

All models share the KV memory, so they share one order too. Why nothing waits for ever: (1) The running request that is
first of all models when a step begins may preempt all others; then every slab but its own is free or idle, and `add`
made sure that it fits alone. Only one that comes before it takes room in a step from it. So every step computes
something, and since output is kept when blocks are taken, there is less and less to do. (2) No waiting request
overtakes an earlier one that lacks blocks, of whatever model; so the running ones become fewer until it fits. (3) The
order of principals changes only by what is computed for the first time: who is served falls behind who is not. One that
gave way keeps its place. A request that is computed alone is the first of all while it is, and is so for a number of
steps that its length bounds.
"""

from .accounts import Accounts
from .admission_control import AdmissionControl
from .alone import AloneJobs
from .drafts import Speculation
from .errors import RequestError
from .giving_way import RunningOrder
from .job_checks import check_request, check_texts
from .kv_cache import KVCacheManager
from .lanes import EmbeddingLane, GenerationLane, Lane, first_lane
from .pace import StepPace
from .plan import ScheduledRow, StepPlan
from .policy import EmbeddingJob, Job, JobQueue
from .request import Request, RequestStatus
from .seats import Seats
from .step import Step
from .step_limit import StepLimit

_Running = tuple[GenerationLane, Request]


class Scheduler:
    """All waiting and running jobs of one device, and the decision what each step computes."""

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        pace: StepPace,
        admission: AdmissionControl | None = None,
        speculation: Speculation | None = None,
        fair_share: bool = True,
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {max_num_batched_tokens}, less than max_num_seqs, {max_num_seqs}: "
                "a step must have room for one token of every running request; raise the first or lower the second"
            )
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.limit = StepLimit(max_num_batched_tokens)
        self.pace = pace
        self.admission = admission or AdmissionControl()
        self.speculation = speculation
        self.accounts = Accounts(fair=fair_share)
        self.generation_lanes: dict[str, GenerationLane] = {}
        self.embedding_lanes: dict[str, EmbeddingLane] = {}
        self._lane_of: dict[str, Lane] = {}
        self._alone = AloneJobs()
        self._seats = Seats(max_num_seqs, self.generation_lanes, self._alone)
        self._num_jobs = 0  # since the start

    # ------------------------------------------------------------------------------------------------------ models

    def install_generation(
        self, model: str, kv: KVCacheManager, max_model_len: int, *, token_cost: float = 1.0
    ) -> GenerationLane:
        """Take requests for a generation model from now on; `token_cost` is that of a prompt token."""
        lane = GenerationLane(model, kv, max_model_len, JobQueue(self.accounts), token_cost)
        self.generation_lanes[model] = lane
        return lane

    def install_embedding(self, model: str, max_model_len: int, *, token_cost: float = 1.0) -> EmbeddingLane:
        """Take jobs for an embedding model from now on; `token_cost` is that of a token."""
        lane = EmbeddingLane(model, max_model_len, JobQueue(self.accounts), token_cost)
        self.embedding_lanes[model] = lane
        return lane

    def has_jobs(self, model: str) -> bool:
        """Whether any job of one model waits or runs."""
        return any(lane.model == model for lane in self._lane_of.values())

    def remove(self, model: str) -> None:
        """Take a model out that has no jobs; its KV memory is free for the others."""
        assert not self.has_jobs(model)
        self.embedding_lanes.pop(model, None)
        if lane := self.generation_lanes.pop(model, None):
            lane.kv.close()
        self.pace.forget(model)
        self.admission.forget(model)

    # ------------------------------------------------------------------------------------------------ jobs in and out

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ContextLengthError: prompt and output can never fit.
            RequestError: it has no prompt or nothing left to generate, or there is already a job with its id.
            QueueFullError: too much waits already.
        """
        lane = self.generation_lanes[request.model]
        check_request(request, min(lane.max_model_len, lane.kv.capacity), lane.max_model_len)
        self._enter(request, lane, request.num_tokens)
        self._seats.wait(lane, request)

    def add_embedding(self, job: EmbeddingJob) -> None:
        """Queue an embedding job.

        Raises:
            ContextLengthError: one of its inputs is longer than the model takes.
            RequestError: an input is empty, or there is already a job with its id.
            QueueFullError: too much waits already.
        """
        lane = self.embedding_lanes[job.model]
        check_texts(job, lane.max_model_len)
        self._enter(job, lane, sum(len(item.token_ids) for item in job.remaining))
        self._seats.wait(lane, job)
        lane.unfinished[job.request_id] = job

    def cancel(self, request_id: str) -> None:
        """Forget a job; its blocks are free before the next step. Unknown ids are ignored."""
        self.admission.leave(request_id)
        lane = self._lane_of.pop(request_id, None)
        if lane is None:
            return
        job = self._alone.discard(request_id) or lane.waiting.remove(request_id)
        if isinstance(lane, EmbeddingLane):
            job = lane.unfinished.pop(request_id)
        elif request := lane.running.pop(request_id, None):
            lane.kv.release(request)
            job = request
        if isinstance(job, Request):
            job.status = RequestStatus.FINISHED
        assert job is not None, "it waits, or runs"
        self.accounts.leave(job.principal)

    def finish(self, request: Request) -> None:
        """Take a request out because its output is complete or its step failed."""
        self.cancel(request.request_id)

    def finish_embedding(self, job: EmbeddingJob) -> None:
        """Take an embedding job out."""
        self.cancel(job.request_id)

    def come_through(self, request: Request) -> None:
        """A request has a new token: if it had to be computed alone so far, it is one like any other now."""
        if request.alone:
            self._alone.discard(request.request_id)

    def requeue(self, job: Job) -> None:
        """Compute a job again because its step failed: a request's blocks are taken, texts were put back already."""
        lane = self._lane_of[job.request_id]
        if isinstance(lane, EmbeddingLane):
            lane.waiting.remove(job.request_id)
            self._seats.wait(lane, job)
        elif request := lane.running.get(job.request_id):
            self._seats.preempt(lane, request)

    def isolate(self, job: Job) -> None:
        """`requeue` a job, to be computed alone."""
        job.alone = True
        self.requeue(job)
        if lane_job := self._lane_of[job.request_id].waiting.remove(job.request_id):
            self._alone.add(lane_job)

    def isolated(self, model: str) -> list[Job]:
        """The jobs of a model that have to be computed alone."""
        return self._alone.of_model(model)

    def num_waiting(self, model: str) -> int:
        """Requests of a generation model that hold no blocks."""
        return len(self.generation_lanes[model].waiting) + self._alone.num_waiting(model)

    @property
    def has_work(self) -> bool:
        """Whether any job waits or runs."""
        return bool(self._lane_of)

    @property
    def num_running(self) -> int:
        """Requests that hold blocks, over all models."""
        return self._seats.num_taken

    def preempt_all(self) -> None:
        """Take the blocks of every running request; the requests are queued again, and computed again."""
        self._seats.preempt_all()

    @property
    def num_jobs(self) -> int:
        """Jobs that wait or run."""
        return len(self._lane_of)

    def has_job(self, request_id: str) -> bool:
        """Whether a job waits or runs."""
        return request_id in self._lane_of

    def _enter(self, job: Job, lane: Lane, num_tokens: int) -> None:
        if self.has_job(job.request_id):
            raise RequestError(f"there is already a job with the id {job.request_id}", code="duplicate_request_id")
        self.admission.enter(job, num_tokens)
        self._lane_of[job.request_id] = lane
        self.accounts.enter(job.principal, job.weight)
        job.sequence = self._num_jobs
        self._num_jobs += 1

    # ---------------------------------------------------------------------------------------------------- one step

    @property
    def is_alone_next(self) -> bool:
        """Whether the next step is for a job that is computed alone: nothing may be in flight when it is made."""
        return self._alone.is_next(len(self._lane_of) - len(self._alone))

    def schedule(self) -> StepPlan:
        """Decide what the next step computes; the blocks for it are taken and shared when this returns."""
        plan = self._plan(Step(self.max_num_batched_tokens, self.pace, self.limit.num_tokens))
        self.admission.take_up(plan)
        return plan

    def _plan(self, step: Step) -> StepPlan:
        if self._alone.take_turn(len(self._lane_of) - len(self._alone)):
            self._schedule_alone(step, self._alone.first)
            return step.plan(alone=True)
        order = self._seats.displace()
        self._schedule_streams(step, order)
        step.end_streams()
        text_lane = first_lane(self.embedding_lanes.values())
        if text_lane:
            step.reserve_for_texts(text_lane, _next_text_len(text_lane))
        short, long = self._prompts()
        if long:
            step.reserve_for_long_prompts()
        for lane, request in short:
            self._seats.admit_waiting(step, before=lane.waiting.key(request))
            step.add_prompt(lane, request)
        self._seats.admit_waiting(step)
        if long:
            step.release()
            for lane, request in long:
                step.add_prompt(lane, request)
        if text_lane:
            step.release()
            self._schedule_texts(step)
        return step.plan()

    def advance(self, row: ScheduledRow) -> None:
        """The row has been launched: what is scheduled next is computed after it."""
        lane = self.generation_lanes[row.request.model]
        prompt_end = len(row.request.prompt_token_ids)
        lane.num_prompt_tokens += max(0, min(row.end, prompt_end) - row.start)
        row.request.num_computed_tokens = row.end
        row.request.num_pending_tokens += row.samples

    def _prompts(self) -> tuple[list[_Running], list[_Running]]:
        """The running requests that want many tokens, in order: those that one step could finish, and the longer ones.

        A prompt that takes many steps leaves others half of each.
        """
        prompts = [
            (lane, request, num_missing)
            for lane in self.generation_lanes.values()
            for request in lane.running.values()
            if not request.alone and (num_missing := request.num_tokens - request.num_computed_tokens) > 1
        ]
        prompts.sort(key=lambda entry: entry[0].waiting.key(entry[1]))
        limit = self.max_num_batched_tokens
        short = [(lane, request) for lane, request, num_missing in prompts if num_missing <= limit]
        long = [(lane, request) for lane, request, num_missing in prompts if num_missing > limit]
        return short, long

    def _schedule_streams(self, step: Step, order: RunningOrder) -> None:
        """Rows for the running requests that need a single token."""
        for lane, request in order.requests:
            if step.is_full:
                return
            preempted_meanwhile = request.status is not RequestStatus.RUNNING
            if preempted_meanwhile or request.num_tokens - request.num_computed_tokens != 1 or request.awaits_token:
                continue
            drafts: list[int] = []
            if self.speculation and self.speculation.is_open_to(request):
                room = step.room_for_drafts(len(order.requests))
                price = self.pace.tokens_per_draft(lane.model, len(lane.running))
                drafts = self.speculation.guess(request, room, price)
                if drafts and request.num_pending_tokens:
                    continue  # guesses follow a token that the host knows
            if drafts and lane.kv.can_grow(request, len(drafts)):
                lane.kv.grow(request, len(drafts))
                step.add_stream(lane, request, drafts)
            elif self._seats.make_room(step, order, lane, request):
                lane.kv.grow(request)
                step.add_stream(lane, request)

    def _schedule_alone(self, step: Step, job: Job) -> None:
        """As much of one job as fits; nothing is in flight."""
        if any(lane.running for lane in self.generation_lanes.values()):
            step.be_short()
        if isinstance(job, EmbeddingJob):
            texts = self.embedding_lanes[job.model]
            while job.remaining and not (step.has_texts and len(job.remaining[-1].token_ids) > step.room_for(texts)):
                step.add_text(texts, job)
            return
        lane = self.generation_lanes[job.model]
        if job.status is RequestStatus.WAITING:
            self._seats.admit_alone(lane, job)
        step.add_prompt(lane, job)

    def _schedule_texts(self, step: Step) -> None:
        """Take texts of waiting jobs of all models in the policy's order, as many as fit, but at least one.

        A text cannot be cut, and one that is longer than the room beside steady generation would never be computed.
        """
        while lane := first_lane(self.embedding_lanes.values()):
            if step.has_texts and _next_text_len(lane) > step.room_for(lane):
                return
            job = lane.waiting.peek()
            assert isinstance(job, EmbeddingJob)
            step.add_text(lane, job)
            if not job.remaining:
                lane.waiting.remove(job.request_id)  # what it was charged may have put another in front


def _next_text_len(lane: EmbeddingLane) -> int:
    """Tokens of the lane's next text."""
    job = lane.waiting.peek()
    assert isinstance(job, EmbeddingJob)
    return len(job.remaining[-1].token_ids)
