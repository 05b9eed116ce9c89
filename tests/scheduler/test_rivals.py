"""Rivals, failing steps, lone jobs, texts, two models, preemptions, guesses and cancellations at once lose nothing."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_harness import make_engine, make_job
from mixed_jobs import assert_same, some_jobs, told
from starter_models import minilm_folder
from test_speculation import eager
from tiny_models import make_tiny, make_tiny_tokenizer

from penstock.scheduler.config import ModelSpec
from penstock.scheduler.encoder import EncoderRunner, LaunchedTexts
from penstock.scheduler.engine import Engine
from penstock.scheduler.loader import load_runner
from penstock.scheduler.messages import Embed, EmbeddingOutput, RequestOutput, Submit
from penstock.scheduler.plan import GenerationBatch
from penstock.scheduler.results import LaunchedBatch
from penstock.scheduler.runner import GenerationRunner

POISON = 383
PRINCIPALS = "aaaabbcdef"
WEIGHTS = {"a": 1.0, "b": 3.0, "c": 0.5, "d": 1.0, "e": 2.0, "f": 1.0}
Job = Submit | Embed
Told = dict[str, list[RequestOutput | EmbeddingOutput]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {
        name: make_tiny_tokenizer(make_tiny(family, tmp_path_factory.mktemp(family)))
        for name, family in {"m": "llama", "n": "qwen3"}.items()
    }
    return folders | {"e": minilm_folder()}


def make(folders: dict[str, Path], **config: Any) -> Engine:
    engine = make_engine(folders["m"], **config)
    for name, kind in (("n", "generate"), ("e", "embed")):
        engine.install(load_runner(ModelSpec(name, str(folders[name]), kind, dtype="float32"), engine.config))  # type: ignore[arg-type]
    return engine


class Failing:
    """Results that never come."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def collect(self) -> None:
        raise self._error


def spoil(runner: GenerationRunner, batch: GenerationBatch) -> None:
    """Leave rubbish in the KV cache where the batch should have written."""
    for row in batch.rows:
        for position in range(row.start, row.end):
            block, offset = divmod(position, runner._block_size)
            for cache in runner._caches.values():
                cache.key[row.request.block_ids[block], :, offset] = 1e3
                cache.value[row.request.block_ids[block], :, offset] = 1e3


def break_steps(patch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """Steps fail with a poisoned prompt or text in them, and sometimes for no reason, or for want of memory."""
    launch, launch_texts = GenerationRunner.launch, EncoderRunner.launch

    def error_of(is_poisoned: bool, *, is_divisible: bool, is_shared: bool) -> Exception | None:
        if is_poisoned:
            return RuntimeError("device on fire")
        chance = rng.random()
        if is_shared and chance < 0.05:
            return RuntimeError("nobody knows why")
        return torch.OutOfMemoryError("no") if is_divisible and chance > 0.95 else None

    def launch_or_fail(self: GenerationRunner, batch: GenerationBatch) -> LaunchedBatch:
        is_poisoned = any(POISON in row.request.prompt_token_ids[: row.end] for row in batch.rows)
        error = error_of(is_poisoned, is_divisible=batch.num_tokens > 1, is_shared=len(batch.rows) > 1)
        if error is None:
            return launch(self, batch)
        if rng.random() < 0.5:
            spoil(self, batch)
            raise error
        launch(self, batch)
        spoil(self, batch)
        return Failing(error)  # type: ignore[return-value]

    def texts_or_fail(self: EncoderRunner, inputs: list[list[int]], starts: list[int]) -> LaunchedTexts:
        is_poisoned = any(POISON in text for text in inputs)
        error = error_of(is_poisoned, is_divisible=len(inputs) > 1, is_shared=False)
        if error is None:
            return launch_texts(self, inputs, starts)
        if rng.random() < 0.5:
            raise error
        return Failing(error)  # type: ignore[return-value]

    patch.setattr(GenerationRunner, "launch", launch_or_fail)
    patch.setattr(EncoderRunner, "launch", texts_or_fail)


def make_jobs(rng: random.Random) -> tuple[list[Job], list[Job]]:
    """Jobs of all kinds and principals, and some that make every step fail."""
    good: list[Job] = []
    for job in some_jobs(rng, 30):
        if POISON not in job.prompt_token_ids:
            good.append(replace(job, model=rng.choice("mmn")))
    good += [make_job([5, 6] * 6, max_tokens=20, logit_bias={5: 4.0, 6: 4.0}) for _ in range(3)]
    bad: list[Job] = [make_job([*range(3, 3 + rng.randrange(30)), POISON, 7], max_tokens=4) for _ in range(2)]
    for index in range(6):
        texts = [[101, *rng.sample(range(2000, 3000), rng.randrange(1, 20)), 102] for _ in range(rng.randrange(1, 9))]
        if index == 0:
            texts[-1] = [101, POISON, 102]
        (good if index else bad).append(Embed(f"texts-{index}", "e", texts, 100.0 + index))
    return good, bad


def owned(rng: random.Random, job: Job) -> Job:
    """The job of somebody, which may have to be computed alone."""
    principal = rng.choice(PRINCIPALS)
    return replace(
        job,
        principal=principal,
        weight=WEIGHTS[principal],
        priority=rng.choice([0, 0, -1, 5]),
        alone=rng.random() < 0.15,
    )


def drive(engine: Engine, jobs: list[Job], after_step: Callable[[Told], None] = lambda told: None) -> Told:
    """Add the jobs a few at a time and step until nothing is left."""
    outputs: Told = {job.request_id: [] for job in jobs}
    waiting, num_steps = list(jobs), 0
    while waiting or engine.has_work:
        for job in waiting[:3]:
            engine.add(job)
        del waiting[:3]
        result = engine.step()
        for output in (*result.outputs, *result.embeddings):
            if not isinstance(output, RequestOutput) or output.token_ids or output.finish_reason:
                outputs[output.request_id].append(output)
        after_step(outputs)
        num_steps += 1
        assert num_steps < 5000, "the jobs never finish"
    return outputs


def assert_nothing_is_left(engine: Engine) -> None:
    scheduler = engine.scheduler
    assert all(lane.kv.pool.num_used == 0 for lane in scheduler.generation_lanes.values())
    assert scheduler.accounts.num_accounts == 0
    assert not scheduler.admission._entries and not scheduler.admission._groups
    for queue in scheduler.admission._queues.values():
        assert (queue.total.num_jobs, queue.total.num_tokens, queue.num_reserved) == (0, 0, 0)
        assert not queue.of_principal
    assert not engine._vectors._unfinished
    assert not scheduler._alone._jobs


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_to_rivals_everybody_is_told_the_same(folders: dict[str, Path], seed: int) -> None:
    rng = random.Random(900 + seed)
    good, bad = make_jobs(rng)
    expected = drive(make(folders, enable_prefix_caching=False), good)
    engine = make(
        folders,
        num_blocks=rng.choice([14, 20, 30]),
        block_size=8,
        max_num_batched_tokens=rng.choice([12, 24, 64]),
        max_num_seqs=rng.choice([3, 6, 12]),
        overlap=rng.choice(["on", "on", "off"]),
        shared_prefix_cache=rng.random() < 0.5,
    )
    if rng.random() < 0.5:
        eager(engine)
    jobs = [owned(rng, job) for job in good + bad]
    rng.shuffle(jobs)
    cancelled = {job.request_id: rng.randrange(1, 6) for job in rng.sample(good, 5) if isinstance(job, Submit)}

    def cancel(outputs: Told) -> None:
        for request_id, when in cancelled.items():
            if len(outputs[request_id]) == when:
                engine.cancel(request_id)

    with pytest.MonkeyPatch.context() as patch:
        break_steps(patch, rng)
        actual = drive(engine, jobs, cancel)
    for job in bad:
        assert [output.error.code for output in actual[job.request_id] if output.error] == ["internal_error"]
    for job in good:
        got: Any = actual[job.request_id]
        wanted: Any = expected[job.request_id]
        if isinstance(job, Embed):
            vectors = [np.frombuffer(output.data, np.float32) for output in (*got, *wanted)]
            np.testing.assert_allclose(*vectors, atol=1e-5)
        elif job.request_id in cancelled and not (got and got[-1].finish_reason):
            tokens = told(got)["tokens"]
            assert tokens == told(wanted)["tokens"][: len(tokens)]
        else:
            assert_same(got, wanted)
    assert_nothing_is_left(engine)
