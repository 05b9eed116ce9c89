"""The starter chat model through the engine: twenty real prompts, token for token what transformers generates."""

from pathlib import Path

import pytest
from engine_harness import Oracle, make_engine, make_job, run
from starter_models import smollm2_folder
from tokenizers import Tokenizer

from penstock.scheduler.engine import Engine
from penstock.scheduler.kv_arena import KVArena
from penstock.scheduler.kv_cache import KVCacheManager

TEXTS = [
    "The capital of France is",
    "Once upon a time there was a small village where",
    "def fibonacci(n):\n    ",
    "In 1984, 12+30 is 42.",
    "Water boils at",
    "The three laws of thermodynamics are",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: What is the largest planet?\nA:",
    "1, 2, 3, 4, 5,",
    "Roses are red, violets are",
    "To make a good cup of tea, first",
    "SELECT name FROM users WHERE",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "A penstock is a pipe that",
    "Il était une fois",
    "The meeting is on Monday at 10:30. Please bring",
    "import numpy as np\n\nx = np.",
    "She opened the door and saw",
    "<|im_start|>user\nName two colours.<|im_end|>\n<|im_start|>assistant\n",
    "Photosynthesis is the process by which",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2_folder()


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]


@pytest.fixture(scope="module")
def expected(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    oracle = Oracle(folder)
    return [oracle.greedy(prompt, 12) for prompt in prompts]


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return make_engine(folder, num_threads=0, max_num_batched_tokens=64, max_num_seqs=12)


def test_twenty_prompts_in_one_batch(engine: Engine, prompts: list[list[int]], expected: list[list[int]]) -> None:
    assert run(engine, [make_job(prompt, max_tokens=12) for prompt in prompts]) == expected


def test_twenty_prompts_again_from_the_prefix_cache(
    engine: Engine, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    hits = engine.stats()["m"].prefix_cache_hits
    assert run(engine, [make_job(prompt, max_tokens=12) for prompt in reversed(prompts)]) == expected[::-1]
    assert engine.stats()["m"].prefix_cache_hits > hits


def test_twenty_prompts_alone(engine: Engine, prompts: list[list[int]], expected: list[list[int]]) -> None:
    alone = [run(engine, [make_job(prompt, max_tokens=12, salt="alone")])[0] for prompt in prompts]
    assert alone == expected


def test_prompts_cut_into_sevens_with_blocks_for_few(
    engine: Engine, prompts: list[list[int]], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = engine.scheduler
    monkeypatch.setattr(scheduler, "max_num_batched_tokens", 7)
    monkeypatch.setattr(scheduler, "max_num_seqs", 6)
    lane = scheduler.generation_lanes["m"]
    num_preemptions = lane.num_preemptions
    monkeypatch.setattr(lane, "kv", KVCacheManager(KVArena(7, slab_bytes=7), 1, engine.config.block_size))
    short = [index for index, prompt in enumerate(prompts) if len(prompt) <= 30]
    outputs = run(engine, [make_job(prompts[index], max_tokens=12) for index in short])
    assert outputs == [expected[index] for index in short]
    assert lane.num_preemptions > num_preemptions


def test_prompts_cut_into_single_tokens(
    engine: Engine, prompts: list[list[int]], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.scheduler, "max_num_batched_tokens", 1)
    monkeypatch.setattr(engine.scheduler, "max_num_seqs", 1)
    for index in (3, 9):
        assert run(engine, [make_job(prompts[index], max_tokens=12, salt="ones")]) == [expected[index]]
