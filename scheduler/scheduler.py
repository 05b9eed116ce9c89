"""Deals the tokens of each step out to the requests; knows counts and blocks, never tensors, text or a clock.

There is no prefill phase and no decode phase. Every request has tokens whose keys and values are not computed yet: one
if it is generating, many if it is new or was preempted. A step has a token budget. Requests that need a single token
come first, so that running streams keep their pace. What is left goes to prompts and to texts to embed, each in the
policy's order and half of it to each while both wait: the texts of a whole archive hold up no chat, nor chats them. It
is less than the budget while streams run, see `pace`. Chunked prefill, prefix-cache hits, preemption and resumption are
this arithmetic.

All models share the KV memory, so they share one order too. Why nothing waits for ever: (1) The first running request
of all models is scheduled before any other and may preempt all of them; then every slab but its own is free or idle,
and `add` made sure that it fits alone. So every step computes something of it, and it ends. (2) No waiting request
overtakes an earlier one that lacks blocks, of whatever model; so the running ones become fewer until it fits. A request
that is computed alone is the first of all while it is, and is so for a number of steps that its length bounds.
"""

from collections.abc import Iterable
from typing import TypeVar

from .admission_control import AdmissionControl
from .alone import AloneJobs
from .drafts import Speculation
from .errors import ContextLengthError, RequestError
from .lanes import EmbeddingLane, GenerationLane, Lane
from .pace import StepPace
from .plan import ScheduledRow, StepPlan
from .policy import EmbeddingJob, Job, choose_victim
from .request import BlockId, Request, RequestStatus
from .step import Step

_LaneT = TypeVar("_LaneT", GenerationLane, EmbeddingLane)
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
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {max_num_batched_tokens}, less than max_num_seqs, {max_num_seqs}: "
                "a step must have room for one token of every running request; raise the first or lower the second"
            )
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.pace = pace
        self.admission = admission or AdmissionControl()
        self.speculation = speculation
        self.generation_lanes: dict[str, GenerationLane] = {}
        self.embedding_lanes: dict[str, EmbeddingLane] = {}
        self._lane_of: dict[str, Lane] = {}
        self._alone = AloneJobs()
        self._num_jobs = 0  # since the start

    # ------------------------------------------------------------------------------------------------ jobs in and out

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ContextLengthError: prompt and output can never fit.
            RequestError: it has no prompt or nothing left to generate, or there is already a job with its id.
            QueueFullError: too much waits already.
        """
        if not request.prompt_token_ids:
            raise RequestError("the prompt has no tokens; send at least one")
        if request.num_output_tokens >= request.sampling.max_tokens:
            raise RequestError(
                f"the job already has {request.num_output_tokens} of {request.sampling.max_tokens} output tokens"
            )
        lane = self.generation_lanes[request.model]
        limit = min(lane.max_model_len, lane.kv.capacity)
        if request.max_num_tokens > limit:
            reason = "the model's context" if limit == lane.max_model_len else "the whole KV cache"
            raise ContextLengthError(
                f"{len(request.prompt_token_ids)} prompt tokens and {request.sampling.max_tokens} output tokens need "
                f"{request.max_num_tokens} tokens, but {reason} holds {limit}; shorten the prompt or lower max_tokens"
            )
        self._enter(request, lane, request.num_tokens)
        self._wait(lane, request)

    def add_embedding(self, job: EmbeddingJob) -> None:
        """Queue an embedding job.

        Raises:
            ContextLengthError: one of its inputs is longer than the model takes.
            RequestError: an input is empty, or there is already a job with its id.
            QueueFullError: too much waits already.
        """
        lane = self.embedding_lanes[job.model]
        if not job.remaining or not all(item.token_ids for item in job.remaining):
            raise RequestError("an embedding job needs texts, each of at least one token", param="input")
        longest = max(len(item.token_ids) for item in job.remaining)
        if longest > lane.max_model_len:
            raise ContextLengthError(
                f"an input has {longest} tokens, but {job.model} takes {lane.max_model_len}; split the input",
                param="input",
            )
        self._enter(job, lane, sum(len(item.token_ids) for item in job.remaining))
        self._wait(lane, job)
        lane.unfinished[job.request_id] = job

    def cancel(self, request_id: str) -> None:
        """Forget a job; its blocks are free before the next step. Unknown ids are ignored."""
        self.admission.leave(request_id)
        lane = self._lane_of.pop(request_id, None)
        if lane is None:
            return
        job = self._alone.discard(request_id) or lane.waiting.remove(request_id)
        if isinstance(lane, EmbeddingLane):
            lane.unfinished.pop(request_id)
        elif request := lane.running.pop(request_id, None):
            lane.kv.release(request)
            job = request
        if isinstance(job, Request):
            job.status = RequestStatus.FINISHED

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

    def num_waiting(self, model: str) -> int:
        """Requests of a generation model that hold no blocks."""
        return len(self.generation_lanes[model].waiting) + self._alone.num_waiting(model)

    def preempt_all(self) -> None:
        """Take the blocks of every running request; the requests are queued again, and computed again."""
        for lane in self.generation_lanes.values():
            for request in list(lane.running.values()):
                self._preempt(lane, request)

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

    @property
    def has_work(self) -> bool:
        """Whether any job waits or runs."""
        return bool(self._lane_of)

    @property
    def num_running(self) -> int:
        """Requests that hold blocks, over all models."""
        return sum(len(lane.running) for lane in self.generation_lanes.values())

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
        job.sequence = self._num_jobs
        self._num_jobs += 1

    def _wait(self, lane: Lane, job: Job) -> None:
        """Queue a job that holds no blocks."""
        if job.alone:
            self._alone.add(job)
        else:
            lane.waiting.push(job)

    # ---------------------------------------------------------------------------------------------------- one step

    @property
    def is_alone_next(self) -> bool:
        """Whether the next step is for a job that is computed alone: nothing may be in flight when it is made."""
        return self._alone.is_next(len(self._lane_of) - len(self._alone))

    def schedule(self) -> StepPlan:
        """Decide what the next step computes; the blocks for it are taken and shared when this returns."""
        plan = self._plan(Step(self.max_num_batched_tokens, self.pace))
        self.admission.take_up(plan)
        return plan

    def _plan(self, step: Step) -> StepPlan:
        if self._alone.take_turn(len(self._lane_of) - len(self._alone)):
            self._schedule_alone(step, self._alone.first)
            return step.plan(alone=True)
        running = self._running_in_order()
        self._schedule_streams(step, running)
        step.end_streams()
        text_lane = self._first_lane(self.embedding_lanes.values())
        if text_lane:
            step.reserve_for_texts(text_lane, _next_text_len(text_lane))
        short, long = self._prompts(running)
        if long:
            step.reserve_for_long_prompts()
        self._schedule_prompts(step, short)
        self._admit_waiting(step)
        if long:
            step.release()
            self._schedule_prompts(step, long)
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

    def _running_in_order(self) -> list[_Running]:
        """The running requests of all models, the policy's first ones first."""
        running = [
            (lane.waiting.key(request), lane, request)
            for lane in self.generation_lanes.values()
            for request in lane.running.values()
            if not request.alone
        ]
        running.sort(key=lambda entry: entry[0])
        return [(lane, request) for _, lane, request in running]

    def _prompts(self, running: list[_Running]) -> tuple[list[_Running], list[_Running]]:
        """The running requests that want many tokens: those that one step could finish, and the longer ones.

        A prompt that takes many steps leaves others half of each.
        """
        prompts = [
            (lane, request, num_missing)
            for lane, request in running
            if request.status is RequestStatus.RUNNING
            and (num_missing := request.num_tokens - request.num_computed_tokens) > 1
        ]
        limit = self.max_num_batched_tokens
        short = [(lane, request) for lane, request, num_missing in prompts if num_missing <= limit]
        long = [(lane, request) for lane, request, num_missing in prompts if num_missing > limit]
        return short, long

    def _schedule_streams(self, step: Step, running: list[_Running]) -> None:
        """Rows for the running requests that need a single token."""
        for lane, request in running:
            preempted_meanwhile = request.status is not RequestStatus.RUNNING
            if preempted_meanwhile or request.num_tokens - request.num_computed_tokens != 1 or request.awaits_token:
                continue
            drafts: list[int] = []
            if self.speculation and self.speculation.is_open_to(request):
                room = step.room_for_drafts(len(running))
                price = self.pace.tokens_per_draft(lane.model, len(lane.running))
                drafts = self.speculation.guess(request, room, price)
                if drafts and request.num_pending_tokens:
                    continue  # guesses follow a token that the host knows
            if drafts and lane.kv.can_grow(request, len(drafts)):
                lane.kv.grow(request, len(drafts))
                step.add_stream(lane, request, drafts)
            elif self._make_room(step, lane, request):
                lane.kv.grow(request)
                step.add_stream(lane, request)

    def _schedule_prompts(self, step: Step, prompts: list[_Running]) -> None:
        """Rows for running requests that need several tokens, whose blocks they were given at admission."""
        for lane, request in prompts:
            step.add_prompt(lane, request)

    def _make_room(self, step: Step, lane: GenerationLane, request: Request) -> bool:
        """Preempt later requests until the newest tokens of `request` have blocks; False if it must wait a step.

        Requests already in this step are left alone. The policy's first running request never waits: either all its
        tokens got their blocks at admission, or it may preempt every other one, and `add` made sure that it fits alone.
        """
        while not lane.kv.can_grow(request):
            step.out_of_blocks = True
            victim = self._find_victim(step, lane, request)
            if victim is None:
                return False
            self._preempt(self.generation_lanes[victim.model], victim)
        return True

    def _find_victim(self, step: Step, lane: GenerationLane, request: Request) -> Request | None:
        """The request that would run last among those whose blocks `request` could come to use; None: there is none.

        A request of another model gives its blocks in vain unless a slab becomes idle by it, now or together with those
        that would have to follow.
        """
        key = lane.waiting.key(request)
        candidates: list[Request] = []
        for other_lane in self.generation_lanes.values():
            later: list[Request] = []
            kept: set[int] = set()  # slabs that stay with the other model whoever gives way
            for other in other_lane.running.values():
                is_later = other_lane.waiting.key(other) > key and not other.alone
                if other.request_id not in step.scheduled and is_later:
                    later.append(other)
                elif other_lane is not lane:
                    kept |= other_lane.kv.slabs_of(other)
            candidates += [other for other in later if other_lane is lane or other_lane.kv.slabs_of(other) - kept]
        return choose_victim(candidates, lane.waiting)

    def _preempt(self, lane: GenerationLane, request: Request) -> None:
        """Take a running request's blocks and queue it again; what it computed is found or computed again later."""
        del lane.running[request.request_id]
        lane.kv.release(request)
        request.status = RequestStatus.WAITING
        request.num_preemptions += 1
        lane.num_preemptions += 1
        self._wait(lane, request)

    def _admit_waiting(self, step: Step) -> None:
        """Start waiting requests of all models in the policy's order, until room, seats or blocks are gone."""
        while self.num_running < self.max_num_seqs and not step.out_of_blocks:
            lane = self._first_lane(self.generation_lanes.values())
            if lane is None or not self._admit(step, lane):
                return

    def _admit(self, step: Step, lane: GenerationLane) -> bool:
        """Start the lane's first waiting request; False if it has to wait for room or blocks."""
        request = lane.waiting.peek()
        assert isinstance(request, Request)
        # Its last token may still be on the device if it was preempted a moment ago: its place cannot be looked up.
        if step.room_for(lane) == 0 or request.num_pending_tokens:
            return False
        cached = lane.kv.find_cached(request)
        if not lane.kv.can_admit(request, cached):
            return False
        lane.waiting.pop()
        self._start(lane, request, cached)
        step.add_prompt(lane, request)
        return True

    @staticmethod
    def _start(lane: GenerationLane, request: Request, cached: list[BlockId]) -> None:
        """Give a request that waits no more its blocks."""
        lane.kv.admit(request, cached)
        request.status = RequestStatus.RUNNING
        lane.running[request.request_id] = request

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
            self._admit_alone(lane, job)
        step.add_prompt(lane, job)

    def _admit_alone(self, lane: GenerationLane, request: Request) -> None:
        """Start a request at once: those that would run last give way."""
        cached = lane.kv.find_cached(request)
        while self.num_running == self.max_num_seqs or not lane.kv.can_admit(request, cached):
            running = [other for each in self.generation_lanes.values() for other in each.running.values()]
            victim = choose_victim(running, lane.waiting)
            assert victim is not None, "`add` has seen that the request fits"
            self._preempt(self.generation_lanes[victim.model], victim)
        self._start(lane, request, cached)

    def _schedule_texts(self, step: Step) -> None:
        """Take texts of waiting jobs of all models in the policy's order, as many as fit, but at least one.

        A text cannot be cut, and one that is longer than the room beside steady generation would never be computed.
        """
        while lane := self._first_lane(self.embedding_lanes.values()):
            if step.has_texts and _next_text_len(lane) > step.room_for(lane):
                return
            job = lane.waiting.peek()
            assert isinstance(job, EmbeddingJob)
            step.add_text(lane, job)
            if not job.remaining:
                lane.waiting.pop()

    @staticmethod
    def _first_lane(lanes: Iterable[_LaneT]) -> _LaneT | None:
        """The lane whose first waiting job is the policy's first of all; None: nothing waits."""
        waiting = [lane for lane in lanes if lane.waiting]
        return min(waiting, key=lambda lane: lane.waiting.key(lane.waiting.peek()), default=None)


def _next_text_len(lane: EmbeddingLane) -> int:
    """Tokens of the lane's next text."""
    job = lane.waiting.peek()
    assert isinstance(job, EmbeddingJob)
    return len(job.remaining[-1].token_ids)
