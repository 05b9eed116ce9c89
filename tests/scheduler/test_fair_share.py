"""Who is served when principals compete, and that their changing order loses nothing and ends."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.scheduler.accounts import OUTPUT_TOKEN_COST
from penstock.scheduler.kv_arena import KVArena
from penstock.scheduler.kv_cache import KVCacheManager
from penstock.scheduler.messages import Submit
from penstock.scheduler.pace import StepPace
from penstock.scheduler.plan import StepPlan
from penstock.scheduler.policy import EmbeddingJob
from penstock.scheduler.request import Request, RequestStatus
from penstock.scheduler.sampling_params import SamplingParams
from penstock.scheduler.scheduler import Scheduler

Served = Counter[str]


def make_scheduler(
    num_blocks: int = 64, *, seats: int = 4, budget: int = 64, prefix: bool = True, fair_share: bool = True
) -> Scheduler:
    """Two models of equal cost over one arena, with blocks of 4 tokens, and one for texts."""
    scheduler = Scheduler(max_num_seqs=seats, max_num_batched_tokens=budget, pace=StepPace(0), fair_share=fair_share)
    arena = KVArena(num_blocks, slab_bytes=max(1, num_blocks // 8))
    for model in "mn":
        scheduler.install_generation(model, KVCacheManager(arena, 1, 4, enable_prefix_caching=prefix), 1000)
    scheduler.install_embedding("e", 100)
    return scheduler


def submit(
    scheduler: Scheduler, name: str, principal: str, prompt: int, output: int, *, weight: float = 1.0, model: str = "m"
) -> Request:
    rng = random.Random(name)
    tokens = [rng.randrange(1000) for _ in range(prompt)]
    params = SamplingParams(max_tokens=output, seed=0)
    job = Submit(name, model, tokens, params, 0.0, principal=principal, weight=weight)
    request = Request.from_submit(job)
    scheduler.add(request)
    return request


def step(scheduler: Scheduler, served: Served | None = None) -> StepPlan:
    """What the engine does with a step, with token 7 as every sample; counts output tokens by principal."""
    plan = scheduler.schedule()
    for batch in plan.generation:
        for row in batch.rows:
            scheduler.advance(row)
            if row.samples:
                row.request.append(7)
                if served is not None:
                    served[row.request.principal] += 1
                if len(row.request.token_ids) == row.request.max_num_tokens:
                    scheduler.finish(row.request)
    for texts in plan.embedding:
        for item in texts.inputs:
            job = scheduler.embedding_lanes["e"].unfinished.get(item.request_id)
            if job and not job.remaining:
                scheduler.finish_embedding(job)
    return plan


def test_a_newcomer_takes_the_seat_of_a_stream_whose_principal_is_ahead() -> None:
    scheduler = make_scheduler(seats=4)
    streams = [submit(scheduler, f"g{n}", "greedy", 8, 100) for n in range(8)]
    for _ in range(20):
        step(scheduler)
    light = submit(scheduler, "light", "light", 8, 4)
    for _ in range(3):  # the first charges the greedy one; then the debt exceeds what a stream can lose
        step(scheduler)
    assert light.num_output_tokens > 0
    assert sum(stream.num_preemptions for stream in streams) == 1
    last = max((stream for stream in streams if stream.num_output_tokens), key=lambda stream: stream.sequence)
    assert last.num_preemptions == 1
    for _ in range(10):
        step(scheduler)
    assert light.status is RequestStatus.FINISHED
    assert last.status is RequestStatus.RUNNING  # it has its seat again


def test_a_newcomer_takes_blocks_of_a_stream_whose_principal_is_ahead() -> None:
    scheduler = make_scheduler(num_blocks=24, budget=100, prefix=False)
    stream = submit(scheduler, "stream", "greedy", 20, 76)  # grows to all 96 places
    for _ in range(10):
        step(scheduler)
    light = submit(scheduler, "light", "light", 70, 2)
    step(scheduler)
    assert light.status is RequestStatus.WAITING  # nobody is far enough ahead yet
    while light.status is RequestStatus.WAITING:
        step(scheduler)
    assert (stream.status, stream.num_preemptions) == (RequestStatus.WAITING, 1)
    assert stream.num_output_tokens >= 40  # from the tenth on they were charged, up to what it will compute again
    while scheduler.has_work:
        step(scheduler)
    assert (stream.num_output_tokens, light.num_output_tokens) == (76, 2)


def test_without_fair_share_a_newcomer_waits_for_its_turn() -> None:
    scheduler = make_scheduler(seats=2, fair_share=False)
    streams = [submit(scheduler, f"g{n}", "greedy", 8, 30) for n in range(6)]
    light = submit(scheduler, "light", "light", 8, 4)
    while not light.num_output_tokens:
        step(scheduler)
    assert sum(stream.status is RequestStatus.FINISHED for stream in streams) >= 5
    assert not any(stream.num_preemptions for stream in streams)


def test_the_prompt_of_the_light_one_goes_before_the_rest_of_a_greedy_ones() -> None:
    scheduler = make_scheduler(num_blocks=200, budget=16, seats=8)
    for number in range(4):
        submit(scheduler, f"g{number}", "greedy", 14, 4)
    step(scheduler)  # the second is half computed
    submit(scheduler, "light", "light", 10, 4)
    rows = {row.request.request_id: row.num_tokens for batch in step(scheduler).generation for row in batch.rows}
    assert rows["light"] == 10
    assert rows["g1"] == 16 - 1 - 10


def test_texts_and_requests_are_charged_to_the_same_account() -> None:
    scheduler = make_scheduler(budget=20)
    scheduler.add_embedding(EmbeddingJob("texts", "e", [[1] * 10] * 10, 0.0, "ingest"))
    step(scheduler)
    scheduler.add_embedding(EmbeddingJob("query", "e", [[1] * 10], 1.0, "asker"))
    step(scheduler)
    assert scheduler.accounts.counter("ingest") >= 20
    assert "query" not in scheduler.embedding_lanes["e"].unfinished


def test_output_is_shared_by_weight() -> None:
    scheduler = make_scheduler(num_blocks=400, seats=8)
    for number in range(400):
        submit(scheduler, f"one-{number}", "one", 4, 8)
        submit(scheduler, f"three-{number}", "three", 4, 8, weight=3.0)
    served: Served = Counter()
    for _ in range(300):
        step(scheduler, served)
    assert 2.7 < served["three"] / served["one"] < 3.3


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    seats=st.integers(1, 6),
    num_blocks=st.integers(16, 80),
    prefix=st.booleans(),
    weight=st.sampled_from([0.5, 1.0, 4.0]),
)
def test_two_that_always_wait_are_never_far_apart(
    seed: int, seats: int, num_blocks: int, prefix: bool, weight: float
) -> None:
    """The gap is bounded whatever the lengths are: by what all seats can cost, twice, as in the paper's theorem.

    Here a newcomer may take a seat, which only makes it smaller.
    """
    rng = random.Random(seed)
    scheduler = make_scheduler(num_blocks, seats=seats, prefix=prefix)
    longest = num_blocks * 4 // 2
    weights = {"a": 1.0, "b": weight}
    for number in range(120):
        for principal in weights:
            prompt = rng.randrange(1, longest // 2)
            output = rng.randrange(1, longest // 2)
            submit(scheduler, f"{principal}{number}", principal, prompt, output, weight=weights[principal])
    bound = 2 * OUTPUT_TOKEN_COST * num_blocks * 4 / min(weights.values())
    for _ in range(250):
        step(scheduler)
        waiting = scheduler.generation_lanes["m"].waiting
        if len(waiting) < 150:  # soon one of them may have nothing left
            break
        assert abs(scheduler.accounts.counter("a") - scheduler.accounts.counter("b")) <= bound


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    seats=st.integers(1, 6),
    num_blocks=st.integers(16, 60),
    budget=st.integers(6, 40),
    prefix=st.booleans(),
)
def test_whatever_principals_compete_everybody_ends_and_places_change_a_bounded_number_of_times(
    seed: int, seats: int, num_blocks: int, budget: int, prefix: bool
) -> None:
    rng = random.Random(seed)
    scheduler = make_scheduler(num_blocks, seats=seats, budget=budget, prefix=prefix)
    requests: list[Request] = []
    num_tokens = num_steps = 0
    to_come = rng.randrange(1, 40)
    while to_come or scheduler.has_work:
        for _ in range(min(to_come, rng.choice([0, 0, 1, 8]))):
            to_come -= 1
            principal = rng.choice("aaaabcdef")
            prompt, output = rng.randrange(1, 30), rng.randrange(1, 25)
            requests.append(
                submit(
                    scheduler,
                    f"{to_come}",
                    principal,
                    prompt,
                    output,
                    weight=rng.choice([0.5, 1.0, 3.0]),
                    model=rng.choice("mn"),
                )
            )
            num_tokens += prompt + output
        step(scheduler)
        num_steps += 1
        assert num_steps < 20_000, "the requests never finish"
    assert all(request.num_output_tokens == request.sampling.max_tokens for request in requests)
    assert all(lane.kv.pool.num_used == 0 for lane in scheduler.generation_lanes.values())
    assert scheduler.accounts.num_accounts == 0
    # Every change of places needs something to be computed for the first time since the one before.
    assert sum(request.num_preemptions for request in requests) <= num_tokens
