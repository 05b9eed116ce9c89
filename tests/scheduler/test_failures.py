"""A step that fails costs the one at fault its answer, and nobody else a token, a block or an error."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from engine_harness import make_engine, make_job, run
from mixed_jobs import assert_same, some_jobs, step_through
from starter_models import minilm_folder
from tiny_models import make_tiny, make_tiny_tokenizer

from penstock.scheduler.config import EngineConfig, ModelSpec, WorkerConfig
from penstock.scheduler.encoder import EncoderRunner, LaunchedTexts
from penstock.scheduler.engine import Engine
from penstock.scheduler.errors import DeviceFailedError
from penstock.scheduler.failures import MAX_LONE_FAILURES
from penstock.scheduler.launch import DEVICE_FAILED_STATUS, dump_config
from penstock.scheduler.loader import load_runner
from penstock.scheduler.messages import Embed, RequestOutput, Submit
from penstock.scheduler.plan import GenerationBatch, ScheduledRow
from penstock.scheduler.results import LaunchedBatch
from penstock.scheduler.runner import GenerationRunner

POISON = 383
PROMPT = [50, 60, 70, 80, 90]
Fault = Callable[[list[ScheduledRow]], Exception | None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(make_tiny("llama", tmp_path_factory.mktemp("llama")))


class Failing:
    """Results that never come."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def collect(self) -> None:
        raise self._error


@contextmanager
def faulty(fault: Fault, half: str = "launch", model: str = "m") -> Iterator[list[int]]:
    """Steps of a model fail as `fault` says, and leave rubbish in the KV cache; yields how many rows each had."""
    launch = GenerationRunner.launch
    failed: list[int] = []

    def launch_or_fail(self: GenerationRunner, batch: GenerationBatch) -> LaunchedBatch:
        error = fault(batch.rows) if self.name == model else None
        if error is None:
            return launch(self, batch)
        failed.append(len(batch.rows))
        if half == "collect":
            launch(self, batch)
        for row in batch.rows:
            for position in range(row.start, row.end):
                block, offset = divmod(position, self._block_size)
                for cache in self._caches.values():
                    cache.key[row.request.block_ids[block], :, offset] = 1e3
                    cache.value[row.request.block_ids[block], :, offset] = 1e3
        if half == "collect":
            return Failing(error)  # type: ignore[return-value]
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GenerationRunner, "launch", launch_or_fail)
        yield failed


def has_poison(rows: list[ScheduledRow]) -> bool:
    return any(POISON in row.request.prompt_token_ids[: row.end] for row in rows)


def on_fire(rows: list[ScheduledRow]) -> Exception | None:
    return RuntimeError("device on fire") if has_poison(rows) else None


def errors_of(outputs: dict[str, list[RequestOutput]]) -> dict[str, tuple[int, str]]:
    """Status and code of the jobs that ended with an error."""
    return {
        request_id: (told[-1].error.status, told[-1].error.code)
        for request_id, told in outputs.items()
        if told[-1].error
    }


@pytest.mark.parametrize("speculation", ["off", "ngram"])
@pytest.mark.parametrize(("overlap", "half"), [("off", "launch"), ("on", "launch"), ("on", "collect")])
@pytest.mark.parametrize("seed", range(2))
def test_only_those_at_fault_fail(folder: Path, seed: int, overlap: str, half: str, speculation: str) -> None:
    rng = random.Random(seed)
    limits: dict[str, Any] = {
        "num_blocks": rng.choice([14, 20, 200]),
        "block_size": 8,
        "max_num_batched_tokens": rng.choice([16, 48, 512]),
        "max_num_seqs": rng.choice([4, 8]),
        "speculation": speculation,
    }
    jobs = some_jobs(rng, 20)
    good = [job for job in jobs if POISON not in job.prompt_token_ids]
    shared = [rng.randrange(3, 300) for _ in range(24)]
    bad = []
    for index in range(4):
        prompt = [*shared[: rng.randrange(24)], POISON, *shared[: rng.randrange(8)]]
        bad.append(make_job(prompt, seed=index, max_tokens=5))
    good += [make_job([*shared, index], max_tokens=6) for index in range(3)]
    everybody = good + bad
    rng.shuffle(everybody)

    expected = step_through(make_engine(folder, **limits), good)
    engine = make_engine(folder, overlap=overlap, **limits)
    with faulty(on_fire, half) as failed:
        actual = step_through(engine, everybody)
    assert errors_of(actual) == {job.request_id: (500, "internal_error") for job in bad}
    for job in good:
        assert_same(actual[job.request_id], expected[job.request_id])
    assert max(failed) > 1 and len(failed) <= 2 * len(bad) + 1
    assert "device on fire" not in str(actual)  # that is for the log


def test_another_model_notices_nothing(folder: Path, tmp_path: Path) -> None:
    def two_models() -> Engine:
        engine = make_engine(folder, overlap="on")
        engine.install(load_runner(ModelSpec("n", str(other), "generate", dtype="float32"), engine.config))
        return engine

    other = make_tiny("qwen3", tmp_path)
    jobs = [make_job([*PROMPT, index], max_tokens=8) for index in range(3)]
    jobs += [Submit(f"n{job.request_id}", "n", job.prompt_token_ids, job.sampling, job.arrival_time) for job in jobs]
    bad = make_job([*PROMPT, POISON])
    expected = run(two_models(), jobs)
    engine = two_models()
    with faulty(on_fire):
        actual = step_through(engine, [*jobs, bad])
    assert errors_of(actual).keys() == {bad.request_id}
    assert [[token for told in actual[job.request_id] for token in told.token_ids] for job in jobs] == expected
    assert engine.stats()["m"].num_preemptions > 0
    assert engine.stats()["n"].num_preemptions == 0


def test_who_started_from_what_a_failed_step_left_starts_again(folder: Path) -> None:
    """A newcomer has its seat and found blocks, but no tokens in the step after the one that fails."""
    shared = [*range(3, 27)]
    greedy = [replace(make_job([index, *PROMPT], max_tokens=150, ignore_eos=True), principal="g") for index in (30, 31)]
    bad = replace(make_job([*shared, *range(100, 123)], max_tokens=13), principal="light")
    good = replace(make_job([*shared, 40], max_tokens=5), principal="light")
    ((*_, expected),) = [run(make_engine(folder), [*greedy, good])]
    engine = make_engine(folder, overlap="on", block_size=8, max_num_seqs=2, max_num_batched_tokens=24)
    for job in greedy:
        engine.add(job)
    for _ in range(80):
        engine.step()
    running = engine.scheduler.generation_lanes["m"].running
    without_row = []

    def fault(rows: list[ScheduledRow]) -> Exception | None:
        ids = {row.request.request_id for row in rows}
        without_row.append(good.request_id in running and good.request_id not in ids)
        return RuntimeError("device on fire") if bad.request_id in ids else None

    outputs: list[RequestOutput] = []
    with faulty(fault, "collect"):
        engine.add(bad)
        engine.add(good)
        while engine.has_work:
            outputs += engine.step().outputs
    assert any(without_row)
    assert [output.request_id for output in outputs if output.error] == [bad.request_id]
    assert [
        token for output in outputs if output.request_id == good.request_id for token in output.token_ids
    ] == expected


def test_who_was_in_a_failed_step_with_a_job_that_is_over_is_tried_alone(folder: Path) -> None:
    bad, good = make_job([*PROMPT, POISON]), make_job(PROMPT)
    (expected,) = run(make_engine(folder), [good])
    engine = make_engine(folder, overlap="on")
    with faulty(on_fire, "collect") as failed:
        for job in (bad, good):
            engine.add(job)
        engine.step()
        engine.cancel(bad.request_id)
        outputs = []
        while engine.has_work:
            outputs += engine.step().outputs
    assert failed == [2]
    assert [token for output in outputs for token in output.token_ids] == expected


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("half", ["launch", "collect"])
def test_texts_fail_with_their_own_job_only(folder: Path, half: str, overlap: str) -> None:
    def embed(jobs: list[Embed]) -> dict[str, Any]:
        engine = make_engine(folder, overlap=overlap, max_num_batched_tokens=64)
        engine.install(load_runner(ModelSpec("e", str(minilm_folder()), "embed", dtype="float32"), engine.config))
        for job in jobs:
            engine.add(job)
        engine.add(make_job(PROMPT))
        found: dict[str, Any] = {}
        while engine.has_work:
            result = engine.step()
            assert not any(output.error for output in result.outputs)
            found |= {output.request_id: output for output in result.embeddings}
        assert not engine._vectors._unfinished
        return found

    launch = EncoderRunner.launch

    def fail(self: EncoderRunner, inputs: list[list[int]], second_starts: list[int]) -> LaunchedTexts:
        if not any(POISON in text for text in inputs):
            return launch(self, inputs, second_starts)
        if half == "launch":
            raise RuntimeError("device on fire")
        return Failing(RuntimeError("device on fire"))  # type: ignore[return-value]

    rng = random.Random(1)
    texts = [[[101, *rng.sample(range(2000, 3000), rng.randrange(1, 20)), 102] for _ in range(4)] for _ in range(6)]
    good = [Embed(f"good{index}", "e", texts[index], float(index)) for index in range(4)]
    bad = [Embed(f"bad{index}", "e", [*texts[4 + index], [101, POISON, 102]], float(index)) for index in range(2)]
    expected = embed(good)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncoderRunner, "launch", fail)
        actual = embed([*good[:2], *bad, *good[2:]])
    for job in bad:
        assert actual[job.request_id].error.status == 500
    for job in good:
        vectors = [np.frombuffer(found[job.request_id].data, np.float32) for found in (actual, expected)]
        np.testing.assert_allclose(*vectors, atol=1e-6)


def test_a_broken_model_is_not_tried_with_every_job(folder: Path) -> None:
    engine = make_engine(folder, max_num_seqs=64)
    jobs = [make_job([*PROMPT, index], max_tokens=4) for index in range(60)]
    with faulty(lambda rows: ValueError("broken")) as failed:
        outputs = step_through(engine, jobs)
    assert set(errors_of(outputs).values()) == {(500, "internal_error")} and len(errors_of(outputs)) == 60
    assert len(failed) < 3 * MAX_LONE_FAILURES
    run(engine, [make_job(PROMPT)])  # and it is tried again


def test_steps_that_fail_by_their_size_become_smaller(folder: Path) -> None:
    jobs = [make_job([*PROMPT, index], max_tokens=30) for index in range(12)]
    expected = run(make_engine(folder), jobs)
    engine = make_engine(folder)
    with faulty(lambda rows: RuntimeError("too many") if len(rows) > 3 else None) as failed:
        assert run(engine, jobs) == expected
    assert len(failed) < 12


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_without_memory_steps_become_smaller_and_nobody_fails(folder: Path, error: Exception) -> None:
    jobs = [make_job([*PROMPT, *range(3, 40 + index)], max_tokens=40) for index in range(6)]
    expected = run(make_engine(folder), jobs)
    engine = make_engine(folder, max_num_batched_tokens=128)
    with faulty(lambda rows: error if sum(row.num_tokens for row in rows) > 20 else None) as failed:
        assert run(engine, jobs) == expected
    assert 1 < len(failed) < 20
    assert run(engine, jobs) == expected
    run(engine, [make_job(PROMPT, max_tokens=200, ignore_eos=True)])
    engine.add(make_job([*range(3, 131)]))
    assert engine.step().num_batched_tokens == 128, "the limit is forgotten in the end"


def test_a_request_for_which_there_is_never_memory_fails_alone(folder: Path) -> None:
    jobs = [make_job([*PROMPT, index], max_tokens=20) for index in range(6)]
    expected = run(make_engine(folder), jobs)
    bad = make_job([*PROMPT, POISON])
    engine = make_engine(folder)
    with faulty(lambda rows: torch.OutOfMemoryError("no") if has_poison(rows) else None):
        actual = step_through(engine, [*jobs[:3], bad, *jobs[3:]])
    assert errors_of(actual) == {bad.request_id: (503, "out_of_memory")}
    assert [[token for told in actual[job.request_id] for token in told.token_ids] for job in jobs] == expected


def test_a_text_for_which_there_is_never_memory_fails_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(folder)
    engine.install(load_runner(ModelSpec("e", str(minilm_folder()), "embed", dtype="float32"), engine.config))
    launch = EncoderRunner.launch

    def fail(self: EncoderRunner, inputs: list[list[int]], second_starts: list[int]) -> LaunchedTexts:
        if any(POISON in text for text in inputs):
            raise torch.OutOfMemoryError("no")
        return launch(self, inputs, second_starts)

    monkeypatch.setattr(EncoderRunner, "launch", fail)
    for index, token in enumerate([2000, POISON, 2001]):
        engine.add(Embed(f"e{index}", "e", [[101, token, 102], [101, 2003, 102]], float(index)))
    errors = {}
    while engine.has_work:
        errors |= {output.request_id: output.error for output in engine.step().embeddings}
    assert [error and error.code for error in (errors[f"e{index}"] for index in range(3))] == [
        None,
        "out_of_memory",
        None,
    ]


def test_a_worker_whose_device_is_lost_ends_with_a_status_of_its_own(tmp_path: Path) -> None:
    code = """
import sys
from penstock.scheduler import errors, worker
class Lost(worker.Worker):
    def run(self):
        raise errors.DeviceFailedError("the device has failed: no answer")
worker.Worker = Lost
worker.main()
"""
    config = dump_config(WorkerConfig(f"ipc://{tmp_path}/worker", EngineConfig(device="cpu"), ()))
    done = subprocess.run([sys.executable, "-c", code, config], capture_output=True, text=True, input="", timeout=60)
    assert done.returncode == DEVICE_FAILED_STATUS
    assert "the device has failed: no answer" in done.stderr


@pytest.mark.parametrize("half", ["launch", "collect"])
def test_a_device_that_is_lost_ends_the_engine(folder: Path, half: str) -> None:
    engine = make_engine(folder, overlap="on")
    for index in range(3):
        engine.add(make_job([*PROMPT, index]))
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with faulty(lambda rows: error, half), pytest.raises(DeviceFailedError, match="illegal memory access"):
        for _ in range(3):
            assert not engine.step().outputs


def test_a_grammar_that_breaks_ends_its_request_only(folder: Path) -> None:
    jobs = [make_job([*PROMPT, index], max_tokens=8) for index in range(3)]
    (expected, *_) = run(make_engine(folder), jobs)
    engine = make_engine(folder)
    for job in jobs:
        engine.add(job)
    outputs = engine.step().outputs
    requests = engine.scheduler.generation_lanes["m"].running
    requests[jobs[1].request_id].matcher = Mock(accept=Mock(side_effect=RuntimeError("lost")), is_complete=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.scheduler.masks.MaskFiller.start", lambda self, requests: None)
        patch.setattr("penstock.scheduler.sampling.changes_logits", lambda request: False)
        while engine.has_work:
            outputs += engine.step().outputs
    (error,) = [output for output in outputs if output.error]
    assert error.request_id == jobs[1].request_id
    assert [
        token for output in outputs if output.request_id == jobs[0].request_id for token in output.token_ids
    ] == expected
    assert engine.stats()["m"].kv_blocks_used == 0
