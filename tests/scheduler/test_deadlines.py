"""Jobs that wait or run for too long end with an error of their own, and leave no block behind."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from engine_harness import make_engine, make_job
from tiny_models import make_tiny

from penstock.scheduler.config import EngineConfig
from penstock.scheduler.deadlines import Deadlines
from penstock.scheduler.engine import Engine
from penstock.scheduler.errors import QueueFullError
from penstock.scheduler.messages import Embed, RequestOutput, Submit
from penstock.scheduler.pace import StepPace
from penstock.scheduler.scheduler import Scheduler

PROMPT = [50, 60, 70, 80, 90]


class Clock:
    """Stands still unless told otherwise."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def job(max_tokens: int = 50, **fields: object) -> Submit:
    """One that has just come and does not end by itself."""
    return replace(make_job(PROMPT, max_tokens=max_tokens, ignore_eos=True), arrival_time=time.time(), **fields)  # type: ignore[arg-type]


def run(engine: Engine) -> dict[str, list[RequestOutput]]:
    """Every output by request."""
    outputs: dict[str, list[RequestOutput]] = {}
    while engine.has_work:
        for output in engine.step().outputs:
            outputs.setdefault(output.request_id, []).append(output)
    assert engine.stats()["m"].kv_blocks_used == 0
    assert engine.stats()["m"].num_waiting_tokens == 0
    return outputs


def test_a_job_that_is_not_started_in_time_is_told_when_to_come_again(folder: Path, clock: Clock) -> None:
    engine = make_engine(folder, clock=clock, max_num_seqs=1, queue_timeout=30.0)
    running, waiting = job(), job()
    engine.add(running)
    engine.step()
    engine.add(waiting)
    clock.now += 29
    engine.step()
    assert engine.stats()["m"].num_waiting_tokens == len(PROMPT)
    clock.now += 2
    outputs = run(engine)
    (late,) = outputs[waiting.request_id]
    assert late.error is not None and late.finish_reason == "error" and late.token_ids == []
    assert (late.error.status, late.error.code) == (503, "queue_timeout")
    assert late.error.retry_after and "within 30 s" in late.error.message
    assert outputs[running.request_id][-1].finish_reason == "length"
    assert engine.stats()["m"].refusals == {"queue_timeout": 1}


def test_a_job_has_waited_since_its_arrival(folder: Path, clock: Clock) -> None:
    engine = make_engine(folder, clock=clock, queue_timeout=30.0)
    late = replace(job(), arrival_time=time.time() - 31)
    resumed = replace(job(4), arrival_time=time.time() - 31, is_resumed=True)
    engine.add(late)
    engine.add(resumed)
    outputs = run(engine)
    assert outputs[late.request_id][0].error is not None
    assert outputs[resumed.request_id][-1].finish_reason == "length"


def test_a_preempted_job_does_not_wait_for_the_first_time(folder: Path, clock: Clock) -> None:
    engine = make_engine(folder, clock=clock, queue_timeout=30.0)
    first = job(5)
    engine.add(first)
    engine.step()
    engine.scheduler.preempt_all()
    clock.now += 31
    assert run(engine)[first.request_id][-1].finish_reason == "length"


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_a_running_job_ends_when_its_time_is_over(folder: Path, clock: Clock, overlap: str) -> None:
    engine = make_engine(folder, clock=clock, request_timeout=30.0, overlap=overlap)
    slow, quick = job(), job(3)
    engine.add(slow)
    engine.add(quick)
    tokens = 0
    for _ in range(6):
        tokens += sum(len(output.token_ids) for output in engine.step().outputs)
    clock.now += 31
    (last,) = run(engine)[slow.request_id]
    assert last.error is not None and last.finish_reason == "error"
    assert (last.error.status, last.error.code, last.error.retry_after) == (504, "request_timeout", None)
    assert tokens > 3  # the other was complete before
    assert engine.stats()["m"].refusals == {"request_timeout": 1}


def test_a_job_that_waits_ends_too_and_once(folder: Path, clock: Clock) -> None:
    engine = make_engine(folder, clock=clock, max_num_seqs=1, request_timeout=30.0, queue_timeout=20.0)
    running, waiting = job(), job()
    engine.add(running)
    engine.step()
    engine.add(waiting)
    clock.now += 31
    outputs = run(engine)
    assert [output.error.code for output in outputs[waiting.request_id] if output.error] == ["queue_timeout"]
    assert [output.error.code for output in outputs[running.request_id] if output.error] == ["request_timeout"]


def test_a_full_queue_refuses_and_leaves_nothing(folder: Path, clock: Clock) -> None:
    engine = make_engine(folder, clock=clock, max_num_seqs=1, max_waiting_requests=1)
    first, second, third = (job(4) for _ in range(3))
    engine.add(first)
    engine.step()
    engine.add(second)
    with pytest.raises(QueueFullError):
        engine.add(third)
    with pytest.raises(QueueFullError):
        engine.reserve(third)
    engine.cancel(second.request_id)
    engine.reserve(third)
    engine.add(third)
    assert run(engine)[third.request_id][-1].finish_reason == "length"
    assert engine.stats()["m"].refusals == {"requests": 2}


def test_deadlines_of_jobs_that_are_over_do_not_pile_up(clock: Clock) -> None:
    scheduler = Scheduler(max_num_seqs=1, max_num_batched_tokens=8, pace=StepPace(0))
    deadlines = Deadlines(EngineConfig(request_timeout=3600.0, queue_timeout=60.0), scheduler, clock)
    for number in range(5000):
        deadlines.add(Embed(f"job-{number}", "e", [[1]], time.time()))
    assert len(deadlines) < 2000
    clock.now += 3601
    assert deadlines.late() == []
