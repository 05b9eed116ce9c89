"""The waiting queue's exact order after each event, and who gives way."""

from penstock.scheduler.messages import Submit
from penstock.scheduler.policy import EmbeddingJob, FifoQueue, choose_victim
from penstock.scheduler.request import Request
from penstock.scheduler.sampling_params import SamplingParams


def make_request(name: str, arrival: float, *, priority: int = 0, sequence: int = 0) -> Request:
    params = SamplingParams(max_tokens=1, seed=0)
    request = Request.from_submit(Submit(name, "m", [1], params, arrival, priority=priority))
    request.sequence = sequence
    return request


def drain(queue: FifoQueue) -> list[str]:
    return [queue.pop().request_id for _ in range(len(queue))]


def filled(*requests: Request) -> FifoQueue:
    queue = FifoQueue()
    for request in requests:
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


def test_the_last_in_order_gives_way() -> None:
    queue = FifoQueue()
    running = [make_request("a", 1.0, sequence=1), make_request("b", 1.0, sequence=2), make_request("c", 0.0)]
    victim = choose_victim(running, queue)
    assert victim is not None and victim.request_id == "b"
    assert choose_victim([], queue) is None


def test_an_embedding_job_hands_out_its_shortest_text_first() -> None:
    job = EmbeddingJob("e", "m", [[1] * 3, [1], [1] * 2], 0.0)
    assert [job.remaining.pop().index for _ in range(3)] == [1, 2, 0]
