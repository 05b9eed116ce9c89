"""The waiting queue's exact order after each event, within a principal and between principals."""

import random

from penstock.scheduler.accounts import Accounts
from penstock.scheduler.messages import Submit
from penstock.scheduler.policy import EmbeddingJob, Job, JobQueue
from penstock.scheduler.request import Request
from penstock.scheduler.sampling_params import SamplingParams


def make_request(name: str, arrival: float, *, priority: int = 0, sequence: int = 0, principal: str = "") -> Request:
    params = SamplingParams(max_tokens=1, seed=0)
    job = Submit(name, "m", [1], params, arrival, priority=priority, principal=principal)
    request = Request.from_submit(job)
    request.sequence = sequence
    return request


def drain(queue: JobQueue) -> list[str]:
    return [queue.pop().request_id for _ in range(len(queue))]


def filled(*requests: Request, accounts: Accounts | None = None) -> JobQueue:
    queue = JobQueue(accounts or Accounts())
    for request in requests:
        queue.accounts.enter(request.principal, request.weight)
        queue.push(request)
    return queue


def test_priority_then_arrival_then_sequence() -> None:
    queue = filled(
        make_request("late", 3.0),
        make_request("second", 1.0, sequence=2),
        make_request("first", 1.0, sequence=1),
        make_request("urgent", 9.0, priority=-1),
        make_request("patient", 0.0, priority=5),
    )
    assert queue.peek().request_id == "urgent"
    assert drain(queue) == ["urgent", "first", "second", "late", "patient"]


def test_one_from_the_middle_and_the_first_can_be_removed() -> None:
    queue = filled(*(make_request(name, float(at)) for at, name in enumerate("abcd")))
    removed = queue.remove("c")
    assert removed is not None and removed.request_id == "c"
    assert queue.remove("c") is None
    assert queue.remove("a") is not None
    assert len(queue) == 2
    assert queue.peek().request_id == "b"
    assert drain(queue) == ["b", "d"]


def test_what_comes_back_has_its_old_place() -> None:
    first, second, third = (make_request(name, float(at)) for at, name in enumerate("abc"))
    queue = filled(first, second, third)
    assert queue.pop() is first
    queue.push(first)
    assert queue.remove("a") is first
    queue.push(first)
    assert drain(queue) == ["a", "b", "c"]


def test_the_principal_that_had_least_goes_first_then_priority_then_arrival() -> None:
    queue = filled(
        make_request("greedy-1", 0.0, principal="greedy"),
        make_request("greedy-2", 1.0, principal="greedy"),
        make_request("light", 2.0, principal="light"),
        make_request("urgent", 3.0, principal="third", priority=-1),
    )
    assert drain(queue) == ["urgent", "greedy-1", "greedy-2", "light"]  # all have had nothing

    queue = filled(
        make_request("greedy-1", 0.0, principal="greedy", priority=-5),
        make_request("greedy-2", 1.0, principal="greedy", priority=-5),
        make_request("light", 2.0, principal="light"),
    )
    queue.charge(queue.pop(), 10.0)
    assert queue.peek().request_id == "light"
    queue.accounts.charge("light", 11.0)
    assert drain(queue) == ["greedy-2", "light"]


def test_queues_of_several_models_share_the_accounts() -> None:
    accounts = Accounts()
    chat = filled(*(make_request(f"c{n}", float(n), principal=p) for n, p in enumerate("ab")), accounts=accounts)
    other = filled(*(make_request(f"o{n}", float(n), principal=p) for n, p in enumerate("ab")), accounts=accounts)
    chat.charge(chat.peek(), 5.0)
    assert [chat.peek().request_id, other.peek().request_id] == ["c1", "o1"]
    assert chat.key(chat.peek())[0] == other.key(other.peek())[0] == 0.0


def test_any_order_of_events_gives_the_job_with_the_smallest_key_and_leaves_nothing_behind() -> None:
    rng = random.Random(0)
    accounts = Accounts()
    queue = JobQueue(accounts)
    jobs: dict[str, Job] = {}
    for number in range(4000):
        event = rng.random()
        if event < 0.45 or not jobs:
            principal = f"p{rng.randrange(30)}"
            job = make_request(
                f"j{number}",
                float(rng.randrange(50)),
                priority=rng.randrange(-1, 2),
                sequence=number,
                principal=principal,
            )
            accounts.enter(principal, 1.0)
            queue.push(job)
            jobs[job.request_id] = job
        elif event < 0.7:
            name = rng.choice(list(jobs))
            assert queue.remove(name) is jobs[name]
            accounts.leave(jobs.pop(name).principal)
        elif event < 0.8:
            first = queue.pop()
            accounts.leave(jobs.pop(first.request_id).principal)
        else:
            queue.charge(rng.choice(list(jobs.values())), rng.choice([1.0, 7.5]))
        assert len(queue) == len(jobs)
        if jobs:
            assert queue.peek() is min(jobs.values(), key=queue.key)
    assert drain(queue) and len(queue) == 0


def test_a_client_that_sends_and_cancels_for_ever_takes_no_memory() -> None:
    queue = filled(make_request("first", 0.0, principal="other"))
    for number in range(2000):  # always the first of its principal, never the first of all
        job = make_request(f"j{number}", -1.0, priority=-number, principal=f"p{number}" if number % 2 else "same")
        queue.accounts.enter(job.principal, 1.0)
        queue.push(job)
        queue.accounts.charge(job.principal, 10.0)
        queue.remove(job.request_id)
    assert len(queue._heap) < 50


def test_an_embedding_job_hands_out_its_shortest_text_first() -> None:
    job = EmbeddingJob("e", "m", [[1] * 3, [1], [1] * 2], 0.0)
    assert [job.remaining.pop().index for _ in range(3)] == [1, 2, 0]
