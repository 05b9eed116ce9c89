"""Makes of a step's results what the clients of its requests hear: tokens are appended, ends are found."""

import itertools
import logging
import time
from collections.abc import Collection
from dataclasses import replace

from .drafts import num_equal
from .grammar import invalid_grammar, param_of
from .messages import JobError, JobTimings, RequestOutput
from .plan import SampledToken, ScheduledRow
from .request import Request, RequestStatus
from .scheduler import Scheduler

logger = logging.getLogger(__name__)

STEP_FAILED = JobError(
    "The model failed while computing this request; the server's log says why.", code="internal_error", status=500
)


class OutputMaker:
    """Advances the requests of collected rows.

    A step may have been launched before the one before it ended or cancelled a request of both. Such a surplus row
    says nothing: its request is finished, and its token is dropped.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def outputs_of(
        self, rows: list[ScheduledRow], sampled: list[SampledToken], eos_token_ids: Collection[int]
    ) -> list[RequestOutput]:
        """What the requests of computed rows have to say.

        Args:
            rows: of one model.
            sampled: the tokens of each of those that sample, one after the other.
            eos_token_ids: that end an output of the model.
        """
        now = time.time()
        outputs = [_sign_of_life(row) for row in rows if not row.samples and _is_alive(row)]
        tokens = iter(sampled)
        for row in rows:
            own = list(itertools.islice(tokens, row.num_sampled))
            if own and _is_alive(row):
                try:
                    outputs.append(self._append_all(row, own, now, eos_token_ids))
                except Exception:  # of what belongs to one request: its grammar for example
                    logger.exception("request %s failed after its step", row.request.request_id)
                    outputs.append(self._end(row.request, STEP_FAILED))
        return outputs

    def _append_all(
        self, row: ScheduledRow, tokens: list[SampledToken], now: float, eos_token_ids: Collection[int]
    ) -> RequestOutput:
        """Add the row's next token, and those that it sampled after drafts which turned out right."""
        request = row.request
        if not row.drafts:
            return self._append(request, tokens[0], now, eos_token_ids)
        num_accepted = num_equal(row.drafts, [token.token_id for token in tokens])
        if request.num_computed_tokens == row.end:  # else it was preempted meanwhile, and nothing is computed
            request.num_computed_tokens -= len(row.drafts) - num_accepted
        lane = self._scheduler.generation_lanes[request.model]
        assert request.drafter is not None
        lane.num_draft_tokens += len(row.drafts)
        request.drafter.num_drafted += len(row.drafts)
        request.num_pending_tokens += num_accepted
        output: RequestOutput | None = None
        for index, token in enumerate(tokens[: num_accepted + 1]):
            if index < num_accepted:
                lane.num_accepted_tokens += 1
                request.drafter.num_accepted += 1
            appended = self._append(request, token, now, eos_token_ids)
            output = appended if output is None else _joined(output, appended)
            if output.finish_reason is not None:
                break
        assert output is not None
        return output

    def _append(
        self, request: Request, token: SampledToken, now: float, eos_token_ids: Collection[int]
    ) -> RequestOutput:
        """Add the sampled token to its request and end the request if it is complete."""
        matcher = request.matcher
        if matcher is not None and not matcher.accept(token.token_id):
            error = invalid_grammar(matcher.error)
            return self._end(request, JobError(error.message, error.code, param_of(error, request.sampling)))
        is_first = len(request.token_ids) == len(request.prompt_token_ids)
        request.append(token.token_id)
        self._scheduler.come_through(request)
        request.first_token_time = request.first_token_time or now
        self._scheduler.generation_lanes[request.model].num_generation_tokens += 1
        output = RequestOutput(
            request_id=request.request_id,
            token_ids=[token.token_id],
            num_cached_tokens=request.num_cached_tokens,
            logprobs=[token.logprobs] if token.logprobs else None,
            prompt_logprobs=request.prompt_logprobs if is_first and request.scores_prompt else None,
        )
        num_output_tokens = len(request.token_ids) - len(request.prompt_token_ids)
        is_stop = _is_stop_token(request, token.token_id, num_output_tokens, eos_token_ids)
        is_stop = is_stop or (matcher is not None and matcher.ended_by_token)
        is_complete = is_stop or (matcher is not None and matcher.is_complete)
        if not is_complete and num_output_tokens < request.sampling.max_tokens:
            return output
        self._scheduler.finish(request)
        return replace(
            output,
            finish_reason="stop" if is_complete else "length",
            stop_token_id=token.token_id if is_stop else None,
            timings=JobTimings(
                queued=request.first_scheduled_time - request.arrival_time,
                prefill=request.first_token_time - request.first_scheduled_time,
                decode=now - request.first_token_time,
                num_preemptions=request.num_preemptions,
                num_draft_tokens=request.drafter.num_drafted if request.drafter else 0,
                num_accepted_tokens=request.drafter.num_accepted if request.drafter else 0,
            ),
        )

    def _end(self, request: Request, error: JobError) -> RequestOutput:
        """End one request for a reason of its own."""
        self._scheduler.finish(request)
        return RequestOutput(request.request_id, [], finish_reason="error", error=error)


def _joined(first: RequestOutput, second: RequestOutput) -> RequestOutput:
    """One output of two that follow each other."""
    logprobs = None if second.logprobs is None else [*(first.logprobs or []), *second.logprobs]
    return replace(second, token_ids=first.token_ids + second.token_ids, logprobs=logprobs)


def _is_alive(row: ScheduledRow) -> bool:
    return row.request.status is not RequestStatus.FINISHED


def _is_stop_token(request: Request, token_id: int, num_output_tokens: int, eos_token_ids: Collection[int]) -> bool:
    params = request.sampling
    if num_output_tokens < params.min_tokens:
        return False
    return token_id in params.stop_token_ids or (not params.ignore_eos and token_id in eos_token_ids)


def _sign_of_life(row: ScheduledRow) -> RequestOutput:
    """The output of a row that does not reach the end of its request's tokens: how much of the prompt is computed."""
    request = row.request
    return RequestOutput(
        request.request_id,
        [],
        num_cached_tokens=request.num_cached_tokens,
        num_computed_tokens=min(row.end, len(request.prompt_token_ids)),
    )
