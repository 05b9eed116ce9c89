"""The starter chat model through the engine: twenty real prompts, token for token what transformers generates."""

from pathlib import Path

import pytest
from engine_harness import Oracle, make_engine, make_job, run
from starter_models import smollm2_folder
from tokenizers import Tokenizer

from penstock.scheduler.engine import Engine

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
    return [oracle.greedy(prompt, 16) for prompt in prompts]


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return make_engine(folder, max_num_batched_tokens=48, max_num_seqs=12, kv_cache_memory=256 << 20)


def test_twenty_prompts_in_one_batch(engine: Engine, prompts: list[list[int]], expected: list[list[int]]) -> None:
    assert run(engine, [make_job(prompt, max_tokens=16) for prompt in prompts]) == expected


def test_twenty_prompts_again_from_the_prefix_cache(
    engine: Engine, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    hits = engine.stats()["m"].prefix_cache_hits
    assert run(engine, [make_job(prompt, max_tokens=16) for prompt in reversed(prompts)]) == expected[::-1]
    assert engine.stats()["m"].prefix_cache_hits > hits


def test_prompts_alone(engine: Engine, prompts: list[list[int]], expected: list[list[int]]) -> None:
    for index in (0, 12, 18):
        assert run(engine, [make_job(prompts[index], max_tokens=16)]) == [expected[index]]
