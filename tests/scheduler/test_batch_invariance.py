"""In bfloat16 on the native kernels a request gets bitwise the same whatever it shares its steps with."""

import itertools
from pathlib import Path

import pytest
import torch
from engine_harness import make_job
from starter_models import smollm2_folder
from tiny_models import make_tiny

from penstock.kernels.native import library
from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.engine import Engine
from penstock.scheduler.loader import load_runner
from penstock.scheduler.messages import Submit

pytestmark = pytest.mark.skipif(library() is None, reason="no native kernels on this machine")
_salts = itertools.count()


def make_engine(folder: Path, step_tokens: int) -> Engine:
    config = EngineConfig(
        device="cpu",
        num_threads=1,
        max_num_seqs=16,
        max_num_batched_tokens=step_tokens,
        kv_cache_memory=64 << 20,
        itl_target_ms=0,
    )
    engine = Engine(config)
    engine.install(load_runner(ModelSpec("m", str(folder), "generate", dtype="bfloat16"), engine.config))
    return engine


def answer(engine: Engine, jobs: list[Submit]) -> list[tuple[list[int], list[float]]]:
    """Tokens of each job, and the log probabilities of each and of its four rivals."""
    tokens: dict[str, list[int]] = {job.request_id: [] for job in jobs}
    logprobs: dict[str, list[float]] = {job.request_id: [] for job in jobs}
    for job in jobs:
        engine.add(job)
    while engine.has_work:
        for output in engine.step().outputs:
            assert output.error is None, output.error
            tokens[output.request_id] += output.token_ids
            for entry in output.logprobs or []:
                logprobs[output.request_id] += [entry.logprob, *entry.top_logprobs]
    return [(tokens[job.request_id], logprobs[job.request_id]) for job in jobs]


def make_jobs(vocab_size: int) -> list[Submit]:
    """Eight prompts of 1 to 64 tokens; nothing of them is found in a prefix cache."""
    generator = torch.Generator().manual_seed(0)
    lengths = (9, 1, 33, 64, 17, 2, 48, 25)
    prompts = [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in lengths]
    return [make_job(prompt, max_tokens=5, logprobs=4, ignore_eos=True, salt=f"{next(_salts)}") for prompt in prompts]


def check(folder: Path, vocab_size: int) -> None:
    engine = make_engine(folder, 512)
    together = answer(engine, make_jobs(vocab_size))
    assert all(len(tokens) == 5 and len(logprobs) == 25 for tokens, logprobs in together)
    alone = [answer(engine, [job])[0] for job in make_jobs(vocab_size)]
    assert alone == together
    assert answer(make_engine(folder, 13), make_jobs(vocab_size)) == together


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_tiny_model(family: str, tmp_path: Path) -> None:
    check(make_tiny(family, tmp_path, dtype=torch.bfloat16, head_dim=32), 384)


def test_smollm2() -> None:
    check(smollm2_folder(), 49152)
