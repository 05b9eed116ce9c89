"""Log probabilities of prompts are transformers' log-softmax, however the prompt is cut, evicted and mixed."""

import random
from pathlib import Path

import pytest
import torch
from engine_harness import Oracle, make_engine, make_job
from tiny_models import make_tiny

from penstock.scheduler import step as step_module
from penstock.scheduler.engine import Engine
from penstock.scheduler.messages import RequestOutput, Submit, TokenLogprobs

rng = random.Random(3)
PROMPTS = [[rng.randrange(3, 384) for _ in range(length)] for length in (1, 2, 16, 17, 40, 90)]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 2 squashes its logits after the head, which must not be left out."""
    return make_tiny(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


def scoring_job(prompt: list[int], number: int = 2, **params: object) -> Submit:
    return make_job(prompt, max_tokens=2, prompt_logprobs=number, ignore_eos=True, **params)


def collect(engine: Engine, jobs: list[Submit]) -> dict[str, list[RequestOutput]]:
    outputs: dict[str, list[RequestOutput]] = {job.request_id: [] for job in jobs}
    for job in jobs:
        engine.add(job)
    while engine.has_work:
        for output in engine.step().outputs:
            assert output.error is None
            outputs[output.request_id].append(output)
    return outputs


def check(oracle: Oracle, prompt: list[int], found: list[TokenLogprobs], number: int = 2) -> None:
    with torch.inference_mode():
        expected = oracle.model(torch.tensor([prompt])).logits[0].log_softmax(-1)  # [T, V]
    assert len(found) == len(prompt) - 1
    for index, entry in enumerate(found):
        row = expected[index]
        assert entry.logprob == pytest.approx(row[prompt[index + 1]].item(), abs=2e-3)
        assert entry.top_logprobs == pytest.approx(row.topk(number).values.tolist(), abs=2e-3)
        assert [row[token_id].item() for token_id in entry.top_token_ids] == pytest.approx(entry.top_logprobs, abs=2e-3)


def check_all(oracle: Oracle, engine: Engine) -> None:
    jobs = [scoring_job(prompt) for prompt in PROMPTS]
    others = [make_job(prompt, max_tokens=5) for prompt in PROMPTS[3:]]
    outputs = collect(engine, jobs + others)
    for job in jobs:
        first, *later = [output for output in outputs[job.request_id] if output.token_ids]
        assert first.prompt_logprobs is not None
        check(oracle, job.prompt_token_ids, first.prompt_logprobs)
        assert all(output.prompt_logprobs is None for output in later)
    for other in others:
        assert all(output.prompt_logprobs is None for output in outputs[other.request_id])
        tokens = [token_id for output in outputs[other.request_id] for token_id in output.token_ids]
        assert tokens == oracle.greedy(other.prompt_token_ids, 5)


def test_in_one_batch_and_again_past_the_prefix_cache(folder: Path, oracle: Oracle) -> None:
    engine = make_engine(folder)
    check_all(oracle, engine)
    check_all(oracle, engine)


def test_in_chunks(folder: Path, oracle: Oracle) -> None:
    check_all(oracle, make_engine(folder, max_num_batched_tokens=7, max_num_seqs=7))


def test_a_prompt_evicted_halfway_keeps_what_it_knows(folder: Path, oracle: Oracle) -> None:
    engine = make_engine(folder, num_blocks=18, block_size=8, max_num_batched_tokens=8, max_num_seqs=8)
    streams = [make_job(PROMPTS[2], max_tokens=50, seed=seed, ignore_eos=True) for seed in range(2)]
    job = scoring_job(PROMPTS[-1])
    outputs = collect(engine, [*streams, job])[job.request_id]
    computed = [output.num_computed_tokens for output in outputs if not output.token_ids]
    assert computed != sorted(computed)
    (found,) = (output.prompt_logprobs for output in outputs if output.prompt_logprobs)
    check(oracle, job.prompt_token_ids, found)


def test_a_step_computes_a_bounded_number(folder: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "MAX_PROMPT_LOGPROBS_PER_STEP", 10)
    engine = make_engine(folder)
    jobs = [scoring_job(PROMPTS[-1], 0), scoring_job(PROMPTS[-2], 0)]
    other = make_job(PROMPTS[-1], max_tokens=1)
    for job in [*jobs, other]:
        engine.add(job)
    plans = []
    schedule = engine.scheduler.schedule
    monkeypatch.setattr(engine.scheduler, "schedule", lambda: plans.append(schedule()) or plans[-1])
    outputs = engine.step().outputs
    assert [output.request_id for output in outputs if output.token_ids] == [other.request_id]
    while engine.has_work:
        outputs += engine.step().outputs
    for plan in plans:
        rows = [row for batch in plan.generation for row in batch.rows if row.start < len(row.request.prompt_token_ids)]
        assert sum(row.num_tokens for row in rows if row.request.request_id != other.request_id) <= 10
    for job in jobs:
        (found,) = (o.prompt_logprobs for o in outputs if o.request_id == job.request_id and o.prompt_logprobs)
        check(oracle, job.prompt_token_ids, found, 0)


def test_a_job_that_has_tokens_already_is_not_scored_again(folder: Path) -> None:
    engine = make_engine(folder)
    job = scoring_job(PROMPTS[3])
    (first, _) = collect(engine, [job])[job.request_id]
    resumed = Submit("resumed", "m", job.prompt_token_ids, job.sampling, 0.0, first.token_ids)
    (second,) = collect(engine, [resumed])["resumed"]
    assert second.prompt_logprobs is None
    assert second.num_cached_tokens > 0


def test_a_long_prompt_shows_signs_of_life(folder: Path) -> None:
    engine = make_engine(folder, max_num_batched_tokens=32)
    job = make_job(PROMPTS[-1], max_tokens=2)
    outputs = collect(engine, [job])[job.request_id]
    assert [(output.num_computed_tokens, len(output.token_ids)) for output in outputs] == [
        (32, 0),
        (64, 0),
        (0, 1),
        (0, 1),
    ]
