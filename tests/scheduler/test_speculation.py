"""With speculation every request gets the tokens that it gets without, in fewer steps."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
from engine_harness import make_engine, make_job, run
from mixed_jobs import assert_same, some_jobs, step_through
from tiny_models import make_tiny, make_tiny_tokenizer

from penstock.scheduler.config import EngineConfig
from penstock.scheduler.drafts import Drafter, Speculation
from penstock.scheduler.engine import Engine
from penstock.scheduler.outputs import OutputMaker
from penstock.scheduler.pace import StepPace
from penstock.scheduler.plan import SampledToken, ScheduledRow
from penstock.scheduler.request import Request


class Eager(Speculation):
    """Guesses whatever it costs."""

    def guess(self, request: Request, room: int, price: float) -> list[int]:
        return super().guess(request, room, -1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(make_tiny("llama", tmp_path_factory.mktemp("llama")))


def eager(engine: Engine) -> Engine:
    engine.scheduler.speculation = Eager(num_tokens=4, min_ngram=1, max_ngram=3)
    return engine


@pytest.mark.parametrize(("seed", "overlap"), [(0, "off"), (1, "off"), (2, "off"), (3, "on"), (4, "on")])
def test_any_mix_of_jobs_is_told_the_same(folder: Path, seed: int, overlap: str) -> None:
    rng = random.Random(seed)
    limits: dict[str, Any] = {
        "num_blocks": [14, 20, 200][seed % 3],
        "block_size": 8,
        "max_num_batched_tokens": [16, 24, 512][seed % 3],
        "max_num_seqs": 8,
    }
    # Two-token alphabets: what came before comes again, sometimes.
    jobs = some_jobs(rng, 20)
    jobs += [
        make_job([5, 6] * rng.randrange(4, 12), max_tokens=20, seed=index, temperature=0.7, logprobs=1)
        for index in range(6)
    ]
    jobs += [make_job([7, 8, 9] * 5, max_tokens=24, logit_bias={7: 6.0, 8: 6.0}, temperature=1.0)]
    expected = step_through(make_engine(folder, **limits), jobs)
    engine = eager(make_engine(folder, overlap=overlap, **limits))
    actual = step_through(engine, jobs)
    for job in jobs:
        assert_same(actual[job.request_id], expected[job.request_id])
    stats = engine.stats()["m"]
    assert 0 < stats.accepted_draft_tokens < stats.draft_tokens


def test_right_guesses_save_steps_and_are_counted(folder: Path) -> None:
    engine = eager(make_engine(folder))
    job = make_job([7] * 8, max_tokens=25, logit_bias={7: 1000.0})
    engine.add(job)
    outputs = []
    while engine.has_work:
        outputs += engine.step().outputs
    assert [token_id for output in outputs for token_id in output.token_ids] == [7] * 25
    assert [len(output.token_ids) for output in outputs] == [1, 5, 5, 5, 5, 4]
    timings = outputs[-1].timings
    assert timings is not None
    assert (timings.num_draft_tokens, timings.num_accepted_tokens) == (19, 19)


def test_guesses_beyond_the_end_of_an_output_are_not_counted_as_right(folder: Path) -> None:
    scheduler = eager(make_engine(folder)).scheduler
    request = Request.from_submit(make_job([7] * 8, max_tokens=20))
    scheduler.add(request)
    scheduler.schedule()
    request.drafter = Drafter(3, 1, 3)
    row = ScheduledRow(request, 7, 4, drafts=[5, 6, 7])
    scheduler.advance(row)
    tokens = [SampledToken(token_id, None) for token_id in (5, 6, 7, 8)]
    (output,) = OutputMaker(scheduler).outputs_of([row], tokens, eos_token_ids={6})
    assert (output.token_ids, output.finish_reason, output.stop_token_id) == ([5, 6], "stop", 6)
    assert output.timings is not None
    assert (output.timings.num_draft_tokens, output.timings.num_accepted_tokens) == (3, 2)
    lane = scheduler.generation_lanes["m"]
    assert (lane.num_draft_tokens, lane.num_accepted_tokens, lane.kv.pool.num_used) == (3, 2, 0)


def test_wrong_guesses_are_no_part_of_what_others_share(folder: Path) -> None:
    engine = eager(make_engine(folder, block_size=8))
    prompts = [[11, 12, 13] * 4 + [index] for index in range(20, 24)]
    first = run(engine, [make_job(prompt, max_tokens=16) for prompt in prompts])
    # Their continuations are found in the cache, and are what an engine without one computes.
    longer = [prompt + output for prompt, output in zip(prompts, first, strict=True)]
    plain = make_engine(folder, enable_prefix_caching=False)
    assert run(engine, [make_job(prompt) for prompt in longer]) == run(plain, [make_job(prompt) for prompt in longer])
    assert engine.stats()["m"].prefix_cache_hits > 0


def test_guesses_are_computed_only_where_they_pay() -> None:
    pace = StepPace(0.0)
    for num_rows in (1, 8, 64, 8, 1, 64) * 20:
        pace.observe("m", num_rows, 0, 0.010 + 0.001 * num_rows)
    assert pace.tokens_per_draft("m", 1) == pytest.approx(1 / 11, abs=0.03)  # taken to cost what a stream does
    assert pace.tokens_per_draft("m", 64) == pytest.approx(64 / 74, abs=0.1)
    for _ in range(30):
        pace.observe("m", 8, 0, 0.018 + 0.002 * 16, num_drafts=16)
    assert pace.tokens_per_draft("m", 8) == pytest.approx(8 * 0.002 / 0.018, rel=0.2)  # but is dearer
    for _ in range(500):
        pace.observe("m", 8, 0, 0.018)
    assert pace.tokens_per_draft("m", 8) < 0.6  # and is tried again after a while
    assert pace.tokens_per_draft("unknown", 1) == math.inf
    speculation = Speculation.of(EngineConfig(speculation="ngram", num_draft_tokens=3))
    assert speculation is not None and Speculation.of(EngineConfig()) is None
    job = make_job([1, 2, 3, 4, 1, 2], max_tokens=9)
    request = Request.from_submit(job)
    assert speculation.guess(request, 100, 0.09) == [3, 4, 1]
    assert speculation.guess(request, 2, 0.0) == [3, 4]
    assert speculation.guess(request, 100, 0.86) == []
    request.token_ids += [3, 4, 1, 2, 3, 4, 1]
    assert speculation.guess(request, 100, 0.0) == [2]  # one token comes after the guess, and nine are the limit
    assert isinstance(request.drafter, Drafter)


@pytest.mark.parametrize(
    "params", [{"presence_penalty": 0.5}, {"min_tokens": 3}, {"prompt_logprobs": 0}, {"repetition_penalty": 1.1}]
)
def test_some_requests_get_their_tokens_one_by_one(params: dict[str, Any]) -> None:
    assert not Speculation.is_open_to(Request.from_submit(make_job([1, 2], **params)))
    assert Speculation.is_open_to(Request.from_submit(make_job([1, 2], logit_bias={3: 1.0}, logprobs=2)))


def test_a_row_samples_after_its_token_and_after_each_guess() -> None:
    request = Request.from_submit(make_job([1, 2, 3]))
    row = ScheduledRow(request, 2, 4, [7, 8, 9])
    assert row.samples and row.num_sampled == 4 and row.is_stream and row.end == 6
    assert ScheduledRow(request, 0, 2).num_sampled == 0
