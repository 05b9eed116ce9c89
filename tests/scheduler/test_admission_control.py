"""Who gets a place in a full queue, what the others are told, and that every place is given back."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.scheduler.admission_control import MAX_RETRY_AFTER, AdmissionControl, QueueLimits
from penstock.scheduler.errors import QueueFullError
from penstock.scheduler.messages import Submit
from penstock.scheduler.plan import EmbeddingBatch, EmbeddingInput, GenerationBatch, ScheduledRow, StepPlan
from penstock.scheduler.request import Request
from penstock.scheduler.sampling_params import SamplingParams


class Clock:
    """Stands still unless told otherwise."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Queue:
    """An admission control, whose jobs have as many tokens as the test says."""

    def __init__(self, **limits: float) -> None:
        self.clock = Clock()
        self.control = AdmissionControl(QueueLimits(**limits), self.clock)  # type: ignore[arg-type]
        self._num_jobs = 0

    def enter(
        self, num_tokens: int = 10, principal: str = "", model: str = "m", group: str = "", **more: bool
    ) -> Submit:
        self._num_jobs += 1
        params = SamplingParams(max_tokens=1, seed=0)
        job = Submit(f"job-{self._num_jobs}", model, [1], params, 0.0, principal=principal, group=group)
        if "is_resumed" in more:
            job = replace(job, is_resumed=more["is_resumed"])
        self.control.enter(job, num_tokens)
        return job

    def step(self, *jobs: Submit, seconds: float = 0.1) -> None:
        """A step that schedules the jobs."""
        self.clock.now += seconds
        rows = [ScheduledRow(Request.from_submit(job), 0, 1) for job in jobs]
        self.control.take_up(StepPlan([GenerationBatch("m", rows)], [], 1))

    def drain(self, *, tokens_per_second: int, seconds: int, principal: str = "") -> None:
        """A queue that is never empty is taken up at a pace."""
        rest = self.enter(1, principal)
        for _ in range(10 * seconds):
            self.step(self.enter(tokens_per_second // 10, principal))
        self.control.leave(rest.request_id)


def test_requests_are_bounded_and_places_come_free() -> None:
    queue = Queue(max_requests=2)
    first, second = queue.enter(), queue.enter()
    with pytest.raises(
        QueueFullError, match=r"The queue of m is full: 2 requests wait of at most 2\. Please"
    ) as refusal:
        queue.enter()
    assert (refusal.value.status, refusal.value.code) == (429, "rate_limit_exceeded")
    queue.step(first)
    third = queue.enter()
    queue.control.leave(second.request_id)
    queue.enter()
    assert queue.control.num_waiting_tokens("m") == 20
    assert queue.control.refusals("m") == {"requests": 1}
    assert queue.control.is_waiting(third.request_id) and not queue.control.is_waiting(first.request_id)


def test_tokens_are_bounded_but_an_empty_queue_takes_anything() -> None:
    queue = Queue(max_tokens=100)
    first = queue.enter(5000)
    with pytest.raises(QueueFullError, match="5,000 tokens wait of at most 100 and this request has 1"):
        queue.enter(1)
    queue.step(first)
    queue.enter(60)
    queue.enter(40)
    with pytest.raises(QueueFullError):
        queue.enter(1)
    assert queue.control.refusals("m") == {"tokens": 2}


def test_models_have_queues_of_their_own() -> None:
    queue = Queue(max_requests=1)
    queue.enter(model="archive")
    queue.enter(model="chat")
    with pytest.raises(QueueFullError, match="The queue of chat"):
        queue.enter(model="chat")


def test_a_principal_that_fills_the_queue_keeps_nobody_out() -> None:
    queue = Queue(max_requests=8)
    greedy = [queue.enter(principal="greedy") for _ in range(8)]
    for _ in range(4):
        queue.enter(principal="light")
    with pytest.raises(QueueFullError, match=r"12 requests wait of at most 8, 4 of them yours, of at most 4 while"):
        queue.enter(principal="light")
    queue.step(*greedy[:5])
    queue.enter(principal="greedy")  # seven wait now: there is room for one, whoever comes first
    with pytest.raises(QueueFullError):
        queue.enter(principal="light")
    queue.enter(principal="third")


def test_the_first_job_of_a_principal_may_be_larger_than_its_share() -> None:
    queue = Queue(max_tokens=100)
    queue.enter(100, principal="greedy")
    queue.enter(80, principal="light")
    with pytest.raises(QueueFullError, match="180 tokens wait of at most 100, 80 of them yours, of at most 50"):
        queue.enter(1, principal="light")


def test_choices_of_a_request_come_in_together() -> None:
    queue = Queue(max_requests=2)
    queue.enter(principal="other")
    first = queue.enter(group="cmpl-1")
    rest = [queue.enter(group="cmpl-1") for _ in range(3)]
    with pytest.raises(QueueFullError):
        queue.enter(group="cmpl-2")
    queue.step(first)  # the request is known until all of its jobs are over
    rest.append(queue.enter(group="cmpl-1"))
    for job in [first, *rest]:
        queue.control.leave(job.request_id)
    queue.enter()
    with pytest.raises(QueueFullError):
        queue.enter(group="cmpl-1")


def test_a_job_of_a_dead_worker_is_never_refused() -> None:
    queue = Queue(max_requests=1, max_tokens=1)
    for _ in range(3):
        queue.enter(is_resumed=True)
    assert queue.control.num_waiting_tokens("m") == 30


def test_a_reserved_place_is_kept_once() -> None:
    queue = Queue(max_requests=1)
    job = Submit("job", "m", [1], SamplingParams(max_tokens=1, seed=0), 0.0)
    queue.control.enter(job, 10, is_ready=False)
    with pytest.raises(QueueFullError):
        queue.enter()
    queue.control.enter(job, 10)
    assert queue.control.num_waiting_tokens("m") == 10
    queue.control.leave("job")
    queue.control.leave("unknown")
    queue.enter()


def test_jobs_that_are_not_ready_say_nothing_of_the_pace() -> None:
    queue = Queue(timeout=20, max_requests=3)
    job = Submit("job", "m", [1], SamplingParams(max_tokens=1, seed=0), 0.0)
    queue.control.enter(job, 10, is_ready=False)
    for _ in range(100):
        queue.step()
    queue.enter(10**6)
    queue.enter(10**6)  # the pace is not known, so that only requests are counted


def test_the_bound_follows_the_pace_of_the_queue() -> None:
    queue = Queue(timeout=20, least_tokens=100)
    queue.enter(10**6)
    last = queue.enter(10**6)  # nothing is known yet
    for name in ("job-1", last.request_id):
        queue.control.leave(name)
    queue.drain(tokens_per_second=1000, seconds=120)
    queue.enter(9000)
    with pytest.raises(QueueFullError) as refusal:
        queue.enter(4000)  # 13000 tokens would take 13 s, more than half of 20 s
    assert refusal.value.retry_after == pytest.approx(3, abs=0.5)
    assert f"try again in {refusal.value.retry_after:.1f}s" in refusal.value.message
    assert queue.control.expected_wait("m") == pytest.approx(9, abs=0.5)


def test_a_slow_queue_takes_some_steps_of_tokens_all_the_same() -> None:
    queue = Queue(timeout=20, least_tokens=100)
    queue.drain(tokens_per_second=10, seconds=120)
    queue.enter(50)
    queue.enter(50)
    with pytest.raises(QueueFullError):
        queue.enter(50)


def test_nobody_is_told_to_wait_longer_than_clients_do() -> None:
    queue = Queue(max_requests=1)
    first = queue.enter(10**9)
    for _ in range(100):
        queue.step()
    with pytest.raises(QueueFullError) as refusal:
        queue.enter()
    assert refusal.value.retry_after == MAX_RETRY_AFTER
    queue.control.leave(first.request_id)


def test_texts_of_a_job_are_taken_up_one_after_the_other() -> None:
    queue = Queue(max_requests=1)
    job = queue.enter(30)
    for left in (20, 10, 0):
        assert queue.control.is_waiting(job.request_id) == (left == 20)
        item = EmbeddingInput(job.request_id, 0, [1] * 10, 10)
        queue.control.take_up(StepPlan([], [EmbeddingBatch("m", [item])], 10))
        assert queue.control.num_waiting_tokens("m") == left
    queue.enter()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.sampled_from(["enter", "start", "leave"]))))
def test_no_order_of_events_loses_a_place(events: list[tuple[str, int, str]]) -> None:
    queue = Queue(max_requests=4, max_tokens=100)
    waiting: list[tuple[Submit, int]] = []
    started: list[Submit] = []
    for principal, num_tokens, event in events:
        if event == "enter":
            try:
                waiting.append((queue.enter(num_tokens, principal), num_tokens))
            except QueueFullError:
                assert waiting
        elif event == "start" and waiting:
            started.append(waiting.pop(0)[0])
            queue.step(started[-1])
        elif event == "leave" and (waiting or started):
            job = started.pop() if started else waiting.pop()[0]
            queue.control.leave(job.request_id)
        assert queue.control.num_waiting_tokens("m") == sum(num_tokens for _, num_tokens in waiting)
    for job in [*started, *(job for job, _ in waiting)]:
        queue.control.leave(job.request_id)
    assert queue.control.num_waiting_tokens("m") == 0
    for _ in range(4):
        queue.enter(25)


def test_time_in_which_nothing_waited_does_not_make_the_queue_slow() -> None:
    queue = Queue(max_requests=2)
    queue.drain(tokens_per_second=1000, seconds=30)  # and the one left waiting is cancelled
    queue.clock.now += 60
    queue.step(queue.enter(1000))
    for _ in range(2):
        queue.enter(1000)
    with pytest.raises(QueueFullError) as refusal:
        queue.enter(1000)
    assert refusal.value.retry_after is not None and refusal.value.retry_after < 5
