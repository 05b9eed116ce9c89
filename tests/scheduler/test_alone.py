"""Jobs that are computed alone share no step with anybody, starve nobody, and get the same tokens as otherwise."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_harness import make_engine, make_job, run
from mixed_jobs import some_jobs
from starter_models import minilm_folder
from tiny_models import make_tiny, make_tiny_tokenizer

from penstock.scheduler.config import ModelSpec
from penstock.scheduler.engine import Engine
from penstock.scheduler.loader import load_runner
from penstock.scheduler.messages import Embed
from penstock.scheduler.plan import StepPlan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(make_tiny("llama", tmp_path_factory.mktemp("llama")))


def record_plans(engine: Engine) -> list[StepPlan]:
    """Every plan that is made from now on, and a check that a lone one has the device for itself."""
    plans: list[StepPlan] = []
    schedule = engine.scheduler.schedule

    def record() -> StepPlan:
        plan = schedule()
        if plan.alone:
            assert not engine._in_flight
        plans.append(plan)
        return plan

    engine.scheduler.schedule = record  # type: ignore[method-assign]
    return plans


def jobs_in(plan: StepPlan) -> set[str]:
    rows = {row.request.request_id for batch in plan.generation for row in batch.rows}
    return rows | {item.request_id for batch in plan.embedding for item in batch.inputs}


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("seed", range(2))
def test_lone_jobs_get_the_same_tokens_in_steps_of_their_own(folder: Path, seed: int, overlap: str) -> None:
    rng = random.Random(seed)
    jobs = some_jobs(rng, 16)
    lone = {job.request_id for job in jobs if rng.random() < 0.5}
    limits: dict[str, Any] = {"num_blocks": 12, "block_size": 8, "max_num_batched_tokens": 24, "max_num_seqs": 4}
    expected = run(make_engine(folder, **limits), jobs)
    engine = make_engine(folder, overlap=overlap, **limits)
    plans = record_plans(engine)
    assert run(engine, [replace(job, alone=job.request_id in lone) for job in jobs]) == expected
    for plan in plans:
        assert not plan.alone or len(jobs_in(plan)) == 1
    assert {request_id for plan in plans if plan.alone for request_id in jobs_in(plan)} == lone
    assert {len(jobs_in(plan)) for plan in plans} > {1}, "those that have come through are put together again"


def test_streams_go_on_between_the_steps_of_lone_jobs(folder: Path) -> None:
    engine = make_engine(folder, max_num_batched_tokens=16)
    stream = make_job([5, 6, 7], max_tokens=30)
    engine.add(stream)
    engine.step()
    plans = record_plans(engine)
    for index in range(3):
        engine.add(replace(make_job([9 + index] * 40), alone=True))
    for _ in range(18):
        engine.step()
    assert [plan.alone for plan in plans] == [True, False] * 9
    assert all(stream.request_id in jobs_in(plan) for plan in plans[1::2])


def test_a_lone_job_takes_seats_and_blocks_from_others(folder: Path) -> None:
    limits: dict[str, Any] = {"num_blocks": 8, "block_size": 8, "max_num_seqs": 2, "max_num_batched_tokens": 16}
    jobs = [make_job([index] * 20, max_tokens=8) for index in (3, 4)]
    lone = make_job([8] * 40, max_tokens=8)
    expected = run(make_engine(folder, **limits), [*jobs, lone])

    engine = make_engine(folder, **limits)
    tokens: dict[str, list[int]] = {}
    for job in jobs:
        engine.add(job)
    for _ in range(3):
        for output in engine.step().outputs:
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
    assert engine.stats()["m"].num_running == 2
    engine.add(replace(lone, alone=True))
    assert engine.stats()["m"].num_waiting == 1
    plans = record_plans(engine)
    while engine.has_work:
        for output in engine.step().outputs:
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
    assert plans[0].alone and jobs_in(plans[0]) == {lone.request_id}
    assert [tokens[job.request_id] for job in [*jobs, lone]] == expected
    assert engine.stats()["m"].kv_blocks_used == 0


@pytest.mark.parametrize("num_steps", [0, 1])
def test_a_lone_job_can_be_cancelled(folder: Path, num_steps: int) -> None:
    engine = make_engine(folder, max_num_batched_tokens=16)
    job = replace(make_job([9] * 40), alone=True)
    engine.add(job)
    for _ in range(num_steps):
        engine.step()
    assert engine.has_jobs("m")
    engine.cancel(job.request_id)
    assert not engine.has_work and not engine.has_jobs("m")
    assert engine.stats()["m"].kv_blocks_used == 0


def test_lone_embedding_jobs_share_no_step(folder: Path) -> None:
    engine = make_engine(folder, overlap="on")
    engine.install(load_runner(ModelSpec("e", str(minilm_folder()), "embed", dtype="float32"), engine.config))
    plans = record_plans(engine)
    jobs = [Embed(f"e{index}", "e", [[101, 2000 + index, 102]] * 3, 0.0, alone=index < 2) for index in range(4)]
    for job in jobs:
        engine.add(job)
    engine.add(make_job([4, 5, 6]))
    done: dict[str, bytes] = {}
    while engine.has_work:
        done |= {output.request_id: output.data for output in engine.step().embeddings}
    assert done.keys() == {job.request_id for job in jobs}
    assert [jobs_in(plan) for plan in plans if plan.alone] == [{"e0"}, {"e1"}]
    assert any({"e2", "e3"} <= jobs_in(plan) for plan in plans)
