"""Who gets which tokens of a step, exactly, and that no order of events loses a request or a block."""

import random
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.scheduler.errors import ContextLengthError, RequestError
from penstock.scheduler.kv_arena import KVArena
from penstock.scheduler.kv_cache import KVCacheManager
from penstock.scheduler.messages import Submit
from penstock.scheduler.pace import StepPace
from penstock.scheduler.plan import StepPlan
from penstock.scheduler.policy import EmbeddingJob
from penstock.scheduler.request import Request, RequestStatus
from penstock.scheduler.sampling_params import SamplingParams
from penstock.scheduler.scheduler import Scheduler


def make_scheduler(
    num_blocks: int = 64, block_size: int = 4, max_num_seqs: int = 8, budget: int = 16, prefix: bool = True
) -> Scheduler:
    scheduler = Scheduler(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, pace=StepPace(0))
    arena = KVArena(num_blocks, slab_bytes=num_blocks)
    kv = KVCacheManager(arena, 1, block_size, enable_prefix_caching=prefix)
    scheduler.install_generation("m", kv, 1000)
    scheduler.install_embedding("e", 100)
    return scheduler


_arrival = iter(range(10**9))


def make_request(
    name: str,
    prompt: int | list[int],
    max_tokens: int = 4,
    *,
    arrival: float | None = None,
    model: str = "m",
    **sampling: Any,
) -> Request:
    rng = random.Random(name)
    tokens = prompt if isinstance(prompt, list) else [rng.randrange(1000) for _ in range(prompt)]
    params = SamplingParams(max_tokens=max_tokens, seed=0, **sampling)
    arrival_time = float(next(_arrival)) if arrival is None else arrival
    return Request.from_submit(Submit(name, model, tokens, params, arrival_time))


def rows_of(plan: StepPlan) -> dict[str, tuple[int, int]]:
    """Start and number of tokens of each row by request."""
    return {row.request.request_id: (row.start, row.num_tokens) for batch in plan.generation for row in batch.rows}


def compute(scheduler: Scheduler, plan: StepPlan) -> None:
    """What the engine does with a step, with token 7 as every sample."""
    launch(scheduler, plan)
    collect(scheduler, plan)


def launch(scheduler: Scheduler, plan: StepPlan) -> None:
    """The first half: the device knows of it."""
    for batch in plan.generation:
        num_streams = sum(row.num_tokens == 1 for row in batch.rows)
        scheduler.pace.observe(batch.model, num_streams, batch.num_tokens - num_streams, 0.001 * batch.num_tokens)
        for row in batch.rows:
            scheduler.advance(row)


def collect(scheduler: Scheduler, plan: StepPlan) -> None:
    """The second half, before which the next step may be scheduled and launched."""
    for batch in plan.generation:
        for row in batch.rows:
            if row.samples and row.request.status is not RequestStatus.FINISHED:
                row.request.append(7)
                if len(row.request.token_ids) == row.request.max_num_tokens:
                    scheduler.finish(row.request)
    for embedding_batch in plan.embedding:
        for item in embedding_batch.inputs:
            job = scheduler.embedding_lanes["e"].unfinished.get(item.request_id)
            if job and not job.remaining:
                scheduler.finish_embedding(job)


def test_long_prompts_are_chunked_and_single_tokens_come_first() -> None:
    scheduler = make_scheduler(budget=16)
    scheduler.add(make_request("a", 10))
    scheduler.add(make_request("b", 20))
    plan = scheduler.schedule()
    assert rows_of(plan) == {"a": (0, 10), "b": (0, 6)}
    compute(scheduler, plan)
    plan = scheduler.schedule()
    assert rows_of(plan) == {"a": (10, 1), "b": (6, 14)}
    assert [row.request.request_id for row in plan.generation[0].rows] == ["a", "b"]
    compute(scheduler, plan)
    assert rows_of(scheduler.schedule()) == {"a": (11, 1), "b": (20, 1)}


def test_rows_of_one_token_are_in_front_even_if_their_request_came_later() -> None:
    scheduler = make_scheduler(budget=8)
    scheduler.add(make_request("long", 30))
    compute(scheduler, scheduler.schedule())
    scheduler.add(make_request("short", 1))
    scheduler.generation_lanes["m"].running["long"].num_computed_tokens = 25  # five left: both fit
    plan = scheduler.schedule()
    assert [row.request.request_id for row in plan.generation[0].rows] == ["short", "long"]


def test_seats_are_limited() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for name in "abc":
        scheduler.add(make_request(name, 2, max_tokens=1))
    plan = scheduler.schedule()
    assert set(rows_of(plan)) == {"a", "b"}
    compute(scheduler, plan)
    assert set(rows_of(scheduler.schedule())) == {"c"}


def test_priority_goes_before_arrival() -> None:
    scheduler = make_scheduler(budget=8)
    late = make_request("late", 8)
    late.priority = -1
    scheduler.add(make_request("early", 8))
    scheduler.add(late)
    assert rows_of(scheduler.schedule()) == {"late": (0, 8)}


def test_requests_of_one_step_share_a_prompt() -> None:
    scheduler = make_scheduler(budget=16)
    prompt = [*range(9)]
    for name in "abc":
        scheduler.add(make_request(name, prompt))
    plan = scheduler.schedule()
    assert rows_of(plan) == {"a": (0, 9), "b": (8, 1), "c": (8, 1)}
    kv = scheduler.generation_lanes["m"].kv
    assert kv.pool.ref_counts[:5] == [3, 3, 1, 1, 1]


def test_the_latest_request_gives_way_when_blocks_run_out_and_goes_on_later() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=4, prefix=False)
    first, second = make_request("first", 8, max_tokens=6), make_request("second", 7, max_tokens=6)
    scheduler.add(first)
    scheduler.add(second)
    plan = scheduler.schedule()
    assert rows_of(plan) == {"first": (0, 8), "second": (0, 7)}
    compute(scheduler, plan)
    # The ninth token of the first needs a third block; none is free; the second gives both of its own.
    plan = scheduler.schedule()
    assert rows_of(plan) == {"first": (8, 1)}
    assert (second.status, second.num_computed_tokens, second.block_ids) == (RequestStatus.WAITING, 0, [])
    assert scheduler.generation_lanes["m"].num_preemptions == 1
    while first.status is RequestStatus.RUNNING:
        compute(scheduler, plan)
        plan = scheduler.schedule()
    assert rows_of(plan) == {"second": (0, 8)}  # seven prompt tokens and the one it had sampled
    assert second.num_preemptions == 1


def test_a_preempted_request_finds_its_own_blocks_again() -> None:
    scheduler = make_scheduler(num_blocks=5, block_size=4)
    first, second = make_request("first", 8, max_tokens=4), make_request("second", 8, max_tokens=4)
    scheduler.add(first)
    scheduler.add(second)
    compute(scheduler, scheduler.schedule())
    plan = scheduler.schedule()  # one free block for two that want one
    assert rows_of(plan) == {"first": (8, 1)}
    compute(scheduler, plan)
    while not rows_of(plan).get("second"):
        plan = scheduler.schedule()
        compute(scheduler, plan)
    assert rows_of(plan)["second"] == (8, 1)
    assert second.num_preemptions <= 1


def test_requests_that_arrived_together_do_not_wait_for_each_other_for_ever() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=4)
    choices = [make_request(name, [*range(8)], max_tokens=8, arrival=1.0) for name in "ab"]
    for choice in choices:
        scheduler.add(choice)
    for _ in range(60):
        plan = scheduler.schedule()
        assert plan or not scheduler.has_work
        compute(scheduler, plan)
    assert [choice.num_output_tokens for choice in choices] == [8, 8]
    assert scheduler.generation_lanes["m"].num_preemptions > 0


def test_a_preempted_request_returns_to_its_old_place() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=4, prefix=False, max_num_seqs=2)
    for name in ("first", "second", "third"):
        scheduler.add(make_request(name, 7, max_tokens=6))
    compute(scheduler, scheduler.schedule())
    compute(scheduler, scheduler.schedule())
    scheduler.schedule()  # the first needs a third block
    waiting = scheduler.generation_lanes["m"].waiting
    assert [waiting.pop().request_id for _ in range(len(waiting))] == ["second", "third"]


def test_jobs_without_tokens_are_refused() -> None:
    scheduler = make_scheduler()
    with pytest.raises(RequestError, match="no tokens"):
        scheduler.add(make_request("a", []))
    done = make_request("b", 3, max_tokens=2)
    done.token_ids += [1, 2]
    with pytest.raises(RequestError, match="already has 2 of 2"):
        scheduler.add(done)
    for inputs in ([], [[1], []]):
        with pytest.raises(RequestError, match="at least one token"):
            scheduler.add_embedding(EmbeddingJob("c", "e", inputs, 0.0))
    assert not scheduler.has_work


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = make_scheduler(num_blocks=3, block_size=4)
    with pytest.raises(ContextLengthError, match=r"9 prompt tokens and 4 output tokens need 13 .* holds 12"):
        scheduler.add(make_request("a", 9, max_tokens=4))
    assert not scheduler.has_work
    scheduler.add(make_request("b", 8, max_tokens=4))
    with pytest.raises(RequestError, match="already a job with the id b"):
        scheduler.add(make_request("b", 8, max_tokens=4))


def test_cancelling_frees_the_blocks_at_once() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("running", 10))
    compute(scheduler, scheduler.schedule())
    scheduler.add(make_request("waiting", 10))
    kv = scheduler.generation_lanes["m"].kv
    assert kv.pool.num_used == 3
    scheduler.cancel("running")
    scheduler.cancel("waiting")
    scheduler.cancel("nobody")
    assert kv.pool.num_used == 0
    assert not scheduler.has_work
    assert not scheduler.schedule()


def test_texts_and_prompts_share_what_running_streams_leave() -> None:
    scheduler = make_scheduler(budget=17)
    scheduler.add(make_request("stream", 1, max_tokens=50))
    compute(scheduler, scheduler.schedule())
    scheduler.add_embedding(EmbeddingJob("docs", "e", [[1] * 6, [2] * 3, [3] * 5], float(next(_arrival))))
    scheduler.add(make_request("chat", 20))
    plan = scheduler.schedule()
    assert rows_of(plan) == {"stream": (1, 1), "chat": (0, 8)}
    assert [(item.index, len(item.token_ids)) for item in plan.embedding[0].inputs] == [(1, 3), (2, 5)]
    assert plan.num_batched_tokens == 17
    compute(scheduler, plan)
    plan = scheduler.schedule()
    assert rows_of(plan) == {"stream": (2, 1), "chat": (8, 8)}
    assert [item.index for item in plan.embedding[0].inputs] == [0]
    compute(scheduler, plan)
    assert rows_of(scheduler.schedule()) == {"stream": (3, 1), "chat": (16, 4)}


def test_what_prompts_do_not_need_goes_to_texts() -> None:
    scheduler = make_scheduler(budget=16)
    scheduler.add_embedding(EmbeddingJob("docs", "e", [[1] * 5] * 4, float(next(_arrival))))
    scheduler.add_embedding(EmbeddingJob("more", "e", [[2] * 2], float(next(_arrival))))
    scheduler.add(make_request("chat", 3))
    plan = scheduler.schedule()
    assert rows_of(plan) == {"chat": (0, 3)}
    assert [item.request_id for item in plan.embedding[0].inputs] == ["docs", "docs"]


def test_an_embedding_input_longer_than_the_room_does_not_starve_beside_generation() -> None:
    scheduler = make_scheduler(budget=16)
    scheduler.add(make_request("chat", 1, max_tokens=50))
    compute(scheduler, scheduler.schedule())
    scheduler.add_embedding(EmbeddingJob("doc", "e", [[1] * 16, [2] * 20], float(next(_arrival))))
    plan = scheduler.schedule()
    assert [len(item.token_ids) for item in plan.embedding[0].inputs] == [16]
    assert rows_of(plan) == {"chat": (1, 1)}
    compute(scheduler, plan)
    plan = scheduler.schedule()
    assert [len(item.token_ids) for item in plan.embedding[0].inputs] == [20]


def test_prompts_without_pause_do_not_keep_a_long_text_waiting() -> None:
    scheduler = make_scheduler(budget=16)
    scheduler.add_embedding(EmbeddingJob("text", "e", [[1] * 40, [2] * 40], float(next(_arrival))))
    for number in range(4):
        scheduler.add(make_request(f"chat-{number}", 30))
    for _ in range(2):
        plan = scheduler.schedule()
        assert len(plan.embedding[0].inputs) == 1
        assert rows_of(plan)
        compute(scheduler, plan)
    assert not scheduler.schedule().embedding


def test_a_text_goes_even_if_every_token_of_the_budget_is_a_running_stream() -> None:
    scheduler = make_scheduler(budget=2, max_num_seqs=2)
    for name in "ab":
        scheduler.add(make_request(name, 1, max_tokens=50))
    compute(scheduler, scheduler.schedule())
    scheduler.add_embedding(EmbeddingJob("text", "e", [[1] * 5, [2] * 6], float(next(_arrival))))
    plan = scheduler.schedule()
    assert set(rows_of(plan)) == {"a", "b"}
    assert [len(item.token_ids) for item in plan.embedding[0].inputs] == [5]


def test_a_blocked_model_does_not_hold_up_another() -> None:
    scheduler = make_scheduler(num_blocks=2, block_size=4)
    scheduler.add(make_request("holds", 5, max_tokens=3))
    compute(scheduler, scheduler.schedule())
    scheduler.add(make_request("blocked", 5, max_tokens=3))
    scheduler.add_embedding(EmbeddingJob("doc", "e", [[1] * 4], float(next(_arrival))))
    plan = scheduler.schedule()
    assert set(rows_of(plan)) == {"holds"}
    assert len(plan.embedding[0].inputs) == 1


def test_a_prompt_of_many_steps_leaves_others_half_of_each() -> None:
    scheduler = make_scheduler(budget=16)
    scheduler.add(make_request("long", 100, max_tokens=1))
    plan = scheduler.schedule()
    assert rows_of(plan) == {"long": (0, 16)}
    compute(scheduler, plan)
    scheduler.add(make_request("chat", 10))
    plan = scheduler.schedule()
    assert rows_of(plan) == {"long": (16, 8), "chat": (0, 8)}
    compute(scheduler, plan)
    plan = scheduler.schedule()
    assert rows_of(plan) == {"long": (24, 14), "chat": (8, 2)}
    compute(scheduler, plan)
    assert rows_of(scheduler.schedule()) == {"long": (38, 15), "chat": (10, 1)}


def test_a_stream_goes_on_while_its_newest_token_is_on_the_device() -> None:
    scheduler = make_scheduler(block_size=4)
    stream = make_request("stream", 3, max_tokens=3)
    constrained = make_request("constrained", 3, max_tokens=3)
    constrained.matcher = Mock()  # a grammar needs each token on the host before the next
    scheduler.add(stream)
    scheduler.add(constrained)
    plans = [scheduler.schedule()]
    launch(scheduler, plans[0])
    for _ in range(3):
        plans.append(scheduler.schedule())
        launch(scheduler, plans[-1])
        collect(scheduler, plans[-2])
    # Its last token is known to be the last, so nothing is computed from it.
    assert [rows_of(plan).get("stream") for plan in plans] == [(0, 3), (3, 1), (4, 1), None]
    assert [rows_of(plan).get("constrained") for plan in plans] == [(0, 3), None, (3, 1), None]
    assert stream.token_ids[3:] == [7, 7, 7]
    assert stream.status is RequestStatus.FINISHED


def test_a_block_is_shared_once_the_host_knows_its_tokens() -> None:
    scheduler = make_scheduler(block_size=4)
    kv = scheduler.generation_lanes["m"].kv
    stream = make_request("stream", 3, max_tokens=9)
    scheduler.add(stream)
    plans = [scheduler.schedule()]
    launch(scheduler, plans[0])
    known = []
    for _ in range(3):
        plans.append(scheduler.schedule())
        known.append(len(kv.prefix_cache))
        launch(scheduler, plans[-1])
        collect(scheduler, plans[-2])
    assert [rows_of(plan)["stream"] for plan in plans] == [(0, 3), (3, 1), (4, 1), (5, 1)]
    assert known == [0, 1, 1]
    scheduler.cancel("stream")
    assert kv.find_cached(make_request("again", stream.token_ids[:5])) == [0]


def test_a_budget_smaller_than_the_seats_is_refused() -> None:
    with pytest.raises(ValueError, match="max_num_batched_tokens is 4, less than max_num_seqs, 8"):
        Scheduler(max_num_seqs=8, max_num_batched_tokens=4, pace=StepPace(0))


def check_integrity(scheduler: Scheduler) -> None:
    """Every block's reference count is the number of running requests that hold it, and no byte has two owners."""
    owner_of_byte: dict[int, str] = {}
    for lane in scheduler.generation_lanes.values():
        pool = lane.kv.pool
        counts = [0] * pool.num_blocks
        for request in lane.running.values():
            assert len(request.block_ids) * lane.kv.block_size >= request.num_computed_tokens
            for block_id in request.block_ids:
                counts[block_id] += 1
        assert counts == pool.ref_counts
        assert pool.num_used == sum(count > 0 for count in counts)
        assert all(counts[block_id] == 0 for block_id in pool.free_order())
        assert 0 <= len(pool.free_order()) <= pool.num_available <= pool.num_blocks - pool.num_used
        owned = {block_id for block_id, count in enumerate(counts) if count} | set(pool.free_order())
        known = {block_id for block_id in range(pool.num_blocks) if block_id in lane.kv.prefix_cache}
        assert known <= owned
        for block_id in owned:
            for byte in range(block_id * pool.block_bytes, (block_id + 1) * pool.block_bytes):
                assert owner_of_byte.setdefault(byte, lane.model) == lane.model


def first_running(scheduler: Scheduler) -> Request | None:
    """The running request that is first in the order of all models; one principal has them all."""
    running = [request for lane in scheduler.generation_lanes.values() for request in lane.running.values()]
    return min(running, key=place_of, default=None)


def place_of(request: Request) -> tuple[float, ...]:
    """The request's place in the order of its principal's."""
    return (request.priority, request.arrival_time, request.sequence)


EVENT = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 30), st.integers(1, 12)),
    st.tuples(st.just("add other"), st.integers(1, 30), st.integers(1, 12)),
    st.tuples(st.just("embed"), st.integers(1, 30), st.integers(1, 5)),
    st.tuples(st.just("cancel"), st.integers(0, 40), st.just(0)),
    st.tuples(st.just("swap"), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("step"), st.just(0), st.just(0)),
)


@settings(max_examples=300, deadline=None)
@given(
    events=st.lists(st.tuples(EVENT, st.integers(0, 3)), max_size=60),
    arena=st.integers(33, 120),
    slab=st.integers(2, 120),
    block_bytes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(6, 40),
    prefix=st.booleans(),
    overlap=st.booleans(),
    target=st.sampled_from([0.0, 0.0001, 0.02]),
)
def test_no_sequence_of_events_leaks_a_block_or_loses_a_request(
    events: list[tuple[tuple[str, int, int], int]],
    arena: int,
    slab: int,
    block_bytes: tuple[int, int],
    max_num_seqs: int,
    budget: int,
    prefix: bool,
    overlap: bool,
    target: float,
) -> None:
    scheduler = make_scheduler(11, 4, max_num_seqs, budget, prefix)
    scheduler.pace = StepPace(target)
    shared = KVArena(arena, slab)  # the longest request needs 11 blocks

    def install(model: str, size: int) -> None:
        kv = KVCacheManager(shared, size, 4, enable_prefix_caching=prefix)
        scheduler.install_generation(model, kv, 1000)

    for model, size in zip("mn", block_bytes, strict=True):
        install(model, size)
    requests: list[Request] = []
    in_flight = StepPlan()

    def step() -> StepPlan:
        nonlocal in_flight
        plan, before = scheduler.schedule(), in_flight
        launch(scheduler, plan)
        if overlap:
            in_flight = plan
        collect(scheduler, before if overlap else plan)
        return plan

    jobs: list[str] = []
    cancelled: set[str] = set()
    for number, ((event, size, count), arrival) in enumerate(events):
        name = f"job-{number}"
        if event.startswith("add"):  # prompts begin alike, so that blocks are shared; many arrive at the same time
            model = "m" if event == "add" else "n"
            prompt = [1] * (size // 2) + [number] * (size - size // 2)
            penalty = (size % 3) / 2  # some must have their tokens on the host before they go on
            requests.append(
                make_request(name, prompt, max_tokens=count, arrival=arrival, model=model, presence_penalty=penalty)
            )
            scheduler.add(requests[-1])
            jobs.append(name)
        elif event == "embed":
            scheduler.add_embedding(EmbeddingJob(name, "e", [[1] * size] * count, arrival))
            jobs.append(name)
        elif event == "swap":  # another model under the name, if nobody uses it
            if not scheduler.has_jobs("n") and not in_flight:
                scheduler.remove("n")
                check_integrity(scheduler)
                install("n", size)
        elif event == "cancel" and jobs:
            cancelled.add(jobs[size % len(jobs)])
            scheduler.cancel(jobs[size % len(jobs)])
        else:
            step()
        check_integrity(scheduler)
    num_steps = 0
    while scheduler.has_work:
        first, before = first_running(scheduler), in_flight
        plan = step()
        assert plan or before, "jobs wait, but the step is empty"
        # A waiting request that comes before the first running one may take a step that has no room for both.
        moving = [row.request for each in (plan, before) for batch in each.generation for row in batch.rows]
        assert first is None or min(map(place_of, moving)) <= place_of(first), "the first request of all does not go on"
        check_integrity(scheduler)
        num_steps += 1
        assert num_steps < 5000, "the requests never finish"
    for request in requests:
        if request.request_id not in cancelled:
            assert request.num_output_tokens == request.sampling.max_tokens
    for lane in scheduler.generation_lanes.values():  # in the end one model could have it all
        assert (lane.kv.pool.num_used, lane.kv.pool.num_available) == (0, lane.kv.pool.num_blocks)
    assert not scheduler.embedding_lanes["e"].unfinished
