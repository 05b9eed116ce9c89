"""Greedy output through the engine is transformers' `generate`, token for token, however the work is cut and mixed."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from engine_harness import Oracle, make_engine, make_job, run
from tiny_models import FAMILIES, make_tiny

rng = random.Random(0)
SHARED = [rng.randrange(3, 384) for _ in range(40)]
PROMPTS = [
    [17],
    [rng.randrange(3, 384) for _ in range(5)],
    [rng.randrange(3, 384) for _ in range(16)],
    [rng.randrange(3, 384) for _ in range(33)],
    SHARED + [5, 6, 7],
    SHARED + [8, 9],
    SHARED[:32],
    [rng.randrange(3, 384) for _ in range(90)],
]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle]:
    """A tiny model of each family and its oracle."""
    folder = make_tiny(request.param, tmp_path_factory.mktemp(request.param))
    return folder, Oracle(folder)


def expect(oracle: Oracle, outputs: list[list[int]], prompts: list[list[int]]) -> None:
    assert outputs == [oracle.greedy(prompt) for prompt in prompts]


def test_alone(model: tuple[Path, Oracle]) -> None:
    folder, oracle = model
    engine = make_engine(folder, enable_prefix_caching=False)
    for prompt in PROMPTS:
        expect(oracle, run(engine, [make_job(prompt)]), [prompt])


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_in_a_batch_cut_into_chunks(model: tuple[Path, Oracle], chunk: int) -> None:
    folder, oracle = model
    engine = make_engine(folder, max_num_seqs=min(8, chunk), max_num_batched_tokens=chunk)
    prompts = PROMPTS[:4] if chunk == 1 else PROMPTS
    expect(oracle, run(engine, map(make_job, prompts)), prompts)


def test_with_prefix_cache_hits(model: tuple[Path, Oracle]) -> None:
    folder, oracle = model
    engine = make_engine(folder)
    expect(oracle, run(engine, map(make_job, PROMPTS)), PROMPTS)
    hits_before = engine.stats()["m"].prefix_cache_hits
    expect(oracle, run(engine, map(make_job, PROMPTS)), PROMPTS)
    assert engine.stats()["m"].prefix_cache_hits - hits_before == 32 + 32 + 32 + 16 + 80


def test_with_a_block_pool_too_small(model: tuple[Path, Oracle]) -> None:
    folder, oracle = model
    prompts = PROMPTS[:4] * 2
    engine = make_engine(folder, num_blocks=6, block_size=8, max_num_batched_tokens=32)
    expect(oracle, run(engine, [make_job(prompt) for prompt in prompts]), prompts)
    assert engine.stats()["m"].num_preemptions > 0


def test_while_others_come_and_go(model: tuple[Path, Oracle]) -> None:
    folder, oracle = model
    engine = make_engine(folder, max_num_batched_tokens=24)
    strangers = []

    def disturb(step: int) -> None:
        if step % 2 == 0 and step < 20:
            strangers.append(make_job(PROMPTS[step % 8][:20] + [step + 3], temperature=1.0, seed=step))
            engine.add(strangers[-1])
        elif step % 5 == 0 and strangers:
            engine.cancel(strangers.pop(0).request_id)

    expect(oracle, run(engine, map(make_job, PROMPTS), disturb), PROMPTS)


def test_whoever_asks_and_with_whatever_weight(model: tuple[Path, Oracle]) -> None:
    folder, oracle = model
    rng = random.Random(1)
    engine = make_engine(folder, num_blocks=24, block_size=8, max_num_seqs=3, max_num_batched_tokens=32)
    prompts = rng.choices(PROMPTS, k=24)
    jobs = [
        replace(make_job(prompt), principal=rng.choice("aaab"), weight=rng.choice([0.5, 1.0, 3.0]))
        for prompt in prompts
    ]
    expect(oracle, run(engine, jobs), prompts)
    assert engine.stats()["m"].num_preemptions > 0
