"""The plan of one step while it is being made: what has been dealt out and how much room is left."""

import math
import sys
from collections.abc import Sequence

from .accounts import charge_row
from .lanes import EmbeddingLane, GenerationLane, Lane
from .pace import MIN_TOKENS, StepPace
from .plan import EmbeddingBatch, EmbeddingInput, GenerationBatch, ScheduledRow, StepPlan
from .policy import EmbeddingJob
from .request import Request

MAX_PROMPT_LOGPROBS_PER_STEP = 256
"""Prompt tokens of one step whose log probabilities are wanted: each takes a row of logits over the vocabulary."""

_TEXTS_SHARE = 0.5  # of the streams' target: so long may a step of nothing but texts take
_MAX_TEXT_TOKENS = 1 << 16


class Step:
    """Collects rows and texts within the budget of tokens and, while streams run, within the target for their pace."""

    def __init__(self, budget: int, pace: StepPace, limit: int = sys.maxsize) -> None:
        """`budget` is what a step should have at most, in tokens, and `limit` what the device can take."""
        self.scheduled: set[str] = set()
        """Requests with a row in this step."""
        self.out_of_blocks = False
        """A running request found no free block in this step: nothing is admitted any more."""
        self._budget = min(budget, limit)
        self._limit = limit
        self._pace = pace
        self._seconds_left = math.inf
        self._num_tokens = 0
        self._least = MIN_TOKENS  # prompt tokens that may go in however little time is left
        self._reserved: list[tuple[int, float]] = []  # tokens and seconds kept for those that come later
        self._prompt_logprobs_room = MAX_PROMPT_LOGPROBS_PER_STEP
        self._rows: dict[str, list[ScheduledRow]] = {}
        self._inputs: dict[str, list[EmbeddingInput]] = {}

    @property
    def has_texts(self) -> bool:
        """Whether any text is in this step."""
        return bool(self._inputs)

    def room_for(self, lane: Lane) -> int:
        """Tokens of prompts or texts of one model that still go into the step."""
        budget = self._budget
        if isinstance(lane, EmbeddingLane) and not self._rows:
            budget = min(self._limit, max(budget, self._affordable_texts(lane)))
        room = max(0, budget - self._num_tokens - sum(tokens for tokens, _ in self._reserved))
        if self._seconds_left == math.inf:
            return room
        seconds = max(0.0, self._seconds_left - sum(seconds for _, seconds in self._reserved))
        affordable = int(min(room, seconds / self._pace.seconds_per_token(lane.model)))
        if isinstance(lane, GenerationLane):
            affordable = max(affordable, self._least)
        return min(room, affordable)

    @property
    def is_full(self) -> bool:
        """Whether not even a single token goes in: only a limit brings that about."""
        return self._num_tokens >= self._budget

    def add_stream(self, lane: GenerationLane, request: Request, drafts: Sequence[int] = ()) -> None:
        """The newest token of a request that has no other to compute. All of these come before anything else."""
        self._add_row(lane, request, 1 + len(drafts), drafts)

    def room_for_drafts(self, num_streams: int) -> int:
        """Guesses that still go into the step when so many single tokens may be to come."""
        return max(0, self._budget - self._num_tokens - num_streams)

    def end_streams(self) -> None:
        """All single tokens are in: what else goes in is bounded by what they leave of the target."""
        self._seconds_left = self._pace.seconds_beside({model: self.num_tokens_of(model) for model in self._rows})

    def be_short(self) -> None:
        """Streams that are not in the step wait for its end."""
        if self._pace.target:
            self._seconds_left = _TEXTS_SHARE * self._pace.target

    def num_tokens_of(self, model: str) -> int:
        """Tokens of one generation model in the step."""
        return sum(row.num_tokens for row in self._rows.get(model, ()))

    def add_prompt(self, lane: GenerationLane, request: Request) -> None:
        """As many of the next tokens of a prompt as there is room for, which may be none."""
        num_tokens = min(request.num_tokens - request.num_computed_tokens, self.room_for(lane))
        if request.needs_prompt_logprobs:
            num_tokens = min(num_tokens, self._prompt_logprobs_room)
            self._prompt_logprobs_room -= num_tokens
        if num_tokens > 0:
            self._add_row(lane, request, num_tokens)
            self._least = max(0, self._least - num_tokens)
            self._spend(lane, num_tokens)

    def add_text(self, lane: EmbeddingLane, job: EmbeddingJob) -> None:
        """The next text of a job."""
        item = job.remaining.pop()
        num_tokens = len(item.token_ids)
        self._inputs.setdefault(lane.model, []).append(item)
        self._num_tokens += num_tokens
        self._spend(lane, num_tokens)
        lane.num_prompt_tokens += num_tokens
        lane.waiting.charge(job, lane.token_cost * num_tokens)

    def reserve_for_texts(self, lane: EmbeddingLane, num_tokens: int) -> None:
        """Keep half of what is left for texts, and time for the first, which has `num_tokens` and cannot be cut."""
        first = num_tokens * self._pace.seconds_per_token(lane.model)
        self._reserve(0.0 if first == math.inf else first)

    def reserve_for_long_prompts(self) -> None:
        """Keep half of what is left for prompts that take many steps."""
        self._reserve(0.0)

    def release(self) -> None:
        """Whoever the newest reservation was made for comes now, and gets what the others left too."""
        self._reserved.pop()
        self._least = MIN_TOKENS

    def plan(self, *, alone: bool = False) -> StepPlan:
        """What the step computes; `alone`: while nothing else is on the device."""
        return StepPlan(
            generation=[
                GenerationBatch(model, sorted(rows, key=lambda row: row.num_tokens > 1))
                for model, rows in self._rows.items()
            ],
            embedding=[
                EmbeddingBatch(model, sorted(inputs, key=lambda item: len(item.token_ids)))
                for model, inputs in self._inputs.items()
            ],
            num_batched_tokens=self._num_tokens,
            alone=alone,
        )

    def _affordable_texts(self, lane: EmbeddingLane) -> int:
        """Tokens of a step of nothing but texts, after which a prompt that comes meanwhile still starts soon.

        The budget is meant for generation models; to an encoder a hundredth of their size each step's beginning and
        end would cost more than the texts in between.
        """
        seconds = _TEXTS_SHARE * self._pace.target
        return int(min(seconds / self._pace.seconds_per_token(lane.model), _MAX_TEXT_TOKENS))

    def _add_row(self, lane: GenerationLane, request: Request, num_tokens: int, drafts: Sequence[int] = ()) -> None:
        row = ScheduledRow(request, request.num_computed_tokens, num_tokens, drafts)
        self._rows.setdefault(lane.model, []).append(row)
        self.scheduled.add(request.request_id)
        self._num_tokens += num_tokens
        lane.kv.remember(request, row.end)
        lane.waiting.charge(request, lane.token_cost * charge_row(row))

    def _reserve(self, seconds: float) -> None:
        tokens = max(0, self._budget - self._num_tokens - sum(tokens for tokens, _ in self._reserved))
        half = 0.0 if self._seconds_left == math.inf else self._seconds_left / 2
        self._reserved.append((tokens // 2, max(half, seconds)))

    def _spend(self, lane: Lane, num_tokens: int) -> None:
        if self._seconds_left != math.inf:
            self._seconds_left = max(0.0, self._seconds_left - num_tokens * self._pace.seconds_per_token(lane.model))
