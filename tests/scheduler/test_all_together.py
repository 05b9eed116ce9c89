"""Overlap, guesses, graphs, two models, chunks, preemptions and cancellations at once change nothing that is told."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_harness import make_engine, make_job
from mixed_jobs import assert_same, some_jobs, told
from test_graphs import Repeat
from test_speculation import eager
from tiny_models import make_tiny, make_tiny_tokenizer

from penstock.scheduler.config import ModelSpec
from penstock.scheduler.engine import Engine
from penstock.scheduler.loader import load_runner
from penstock.scheduler.messages import RequestOutput, Submit
from penstock.scheduler.prefix_cache import extend_block_hashes
from penstock.scheduler.request import Request

FAMILIES = {"m": "llama", "n": "qwen3"}
BLOCK_SIZE = 4

Outputs = dict[str, list[RequestOutput]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: make_tiny_tokenizer(make_tiny(family, tmp_path_factory.mktemp(family)))
        for name, family in FAMILIES.items()
    }


def make_both(folders: dict[str, Path], **config: Any) -> Engine:
    engine = make_engine(folders["m"], block_size=BLOCK_SIZE, **config)
    engine.install(load_runner(ModelSpec("n", str(folders["n"]), "generate", dtype="float32"), engine.config))
    return engine


def drive(engine: Engine, jobs: list[Submit], cancelled: dict[str, int]) -> Outputs:
    """Add the jobs a few at a time; `cancelled` says after how many outputs somebody loses interest in one."""
    outputs: Outputs = {job.request_id: [] for job in jobs}
    waiting = list(jobs)
    while waiting or engine.has_work:
        for job in waiting[:3]:
            engine.add(job)
        del waiting[:3]
        for output in engine.step().outputs:
            if output.token_ids or output.finish_reason:
                outputs[output.request_id].append(output)
        for request_id, when in cancelled.items():
            if len(outputs[request_id]) == when:
                engine.cancel(request_id)
    return outputs


def assert_only_known_tokens_are_shared(engine: Engine, jobs: list[Submit], expected: Outputs) -> None:
    """No guess that was wrong and no token after an end is part of what the prefix cache offers."""
    for name, lane in engine.scheduler.generation_lanes.items():
        known = set()
        for job in jobs:
            if job.model == name:
                request = Request.from_submit(replace(job, output_token_ids=told(expected[job.request_id])["tokens"]))
                extend_block_hashes(request, BLOCK_SIZE, len(request.token_ids) // BLOCK_SIZE)
                known.update(request.block_hashes)
        shared = set(lane.kv.prefix_cache._block_by_hash)
        assert shared
        assert shared <= known


@pytest.mark.parametrize(("seed", "overlap", "graphs"), [(0, "on", True), (1, "on", False), (2, "off", True)])
def test_any_mix_of_jobs_is_told_the_same(folders: dict[str, Path], seed: int, overlap: str, graphs: bool) -> None:
    rng = random.Random(500 + seed)
    jobs = some_jobs(rng, 14)
    jobs += [make_job([5, 6] * 6, max_tokens=20, seed=index, logit_bias={5: 4.0, 6: 4.0}) for index in range(6)]
    jobs = [replace(job, model=rng.choice("mmn")) for job in jobs]
    rng.shuffle(jobs)
    expected = drive(make_both(folders, enable_prefix_caching=False), jobs, {})
    limits: dict[str, Any] = {"num_blocks": [26, 40, 26][seed], "max_num_batched_tokens": [24, 8, 512][seed]}
    engine = eager(make_both(folders, overlap=overlap, max_num_seqs=6, **limits))
    if graphs:
        for runner in engine._generation.values():
            runner.use_graphs(Repeat())
    cancelled = {job.request_id: rng.randrange(1, 6) for job in rng.sample(jobs, 4)}
    actual = drive(engine, jobs, cancelled)
    for job in jobs:
        got = actual[job.request_id]
        if job.request_id in cancelled and not got[-1].finish_reason:
            assert len(got) == cancelled[job.request_id]
            tokens = told(got)["tokens"]
            assert tokens == told(expected[job.request_id])["tokens"][: len(tokens)]
        else:
            assert_same(got, expected[job.request_id])
    stats = engine.stats()
    assert sum(each.draft_tokens for each in stats.values()) > 0
    for name in FAMILIES:
        assert stats[name].kv_blocks_used == 0
    assert_only_known_tokens_are_shared(engine, jobs, expected)
