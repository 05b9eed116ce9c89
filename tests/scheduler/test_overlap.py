"""With steps overlapped, every request gets the tokens, ends and log probabilities that it gets without."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import Oracle, make_engine, make_job, run
from mixed_jobs import assert_same, some_jobs, step_through, told
from starter_models import minilm_folder
from tiny_models import EOS_ID, make_tiny, make_tiny_tokenizer

from penstock.scheduler.config import ModelSpec
from penstock.scheduler.encoder import EncoderRunner, LaunchedTexts
from penstock.scheduler.engine import Engine
from penstock.scheduler.loader import load_runner
from penstock.scheduler.messages import Embed, RequestOutput, Submit
from penstock.scheduler.plan import GenerationBatch
from penstock.scheduler.results import LaunchedBatch
from penstock.scheduler.runner import GenerationRunner

PROMPT = [50, 60, 70, 80, 90]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(make_tiny("llama", tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize("seed", range(4))
def test_any_mix_of_jobs_is_told_the_same(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    limits: dict[str, Any] = {
        "num_blocks": rng.choice([12, 20, 200]),
        "block_size": 8,
        "max_num_batched_tokens": rng.choice([8, 24, 512]),
        "max_num_seqs": rng.choice([4, 8]),
        "enable_prefix_caching": rng.random() < 0.8,
    }
    jobs = some_jobs(rng, 24)
    expected = step_through(make_engine(folder, **limits), jobs)
    actual = step_through(make_engine(folder, overlap="on", **limits), jobs)
    assert any(output[-1].finish_reason == "stop" for output in expected.values())
    for job in jobs:
        assert_same(actual[job.request_id], expected[job.request_id])


@pytest.mark.parametrize("seed", range(2))
def test_cancelled_at_any_moment_a_job_is_silent_and_changes_no_other(folder: Path, seed: int) -> None:
    rng = random.Random(100 + seed)
    jobs = some_jobs(rng, 16)
    limits: dict[str, Any] = {"num_blocks": 14, "block_size": 8, "max_num_batched_tokens": 24, "max_num_seqs": 8}
    expected = step_through(make_engine(folder, **limits), jobs)
    engine = make_engine(folder, overlap="on", **limits)
    cancelled = {rng.choice(jobs).request_id: rng.randrange(1, 14) for _ in range(6)}
    silent_from: dict[str, int] = {}
    actual: dict[str, list[RequestOutput]] = {}

    def cancel(step: int) -> None:
        for request_id, when in cancelled.items():
            if step == when:
                engine.cancel(request_id)
                silent_from[request_id] = len(actual[request_id])

    for job in jobs:
        actual[job.request_id] = []
        engine.add(job)
    step = 0
    while engine.has_work:
        cancel(step)
        for output in engine.step().outputs:
            if output.token_ids or output.finish_reason:
                actual[output.request_id].append(output)
        step += 1
    assert engine.stats()["m"].kv_blocks_used == 0
    for job in jobs:
        got, whole = told(actual[job.request_id]), told(expected[job.request_id])
        if job.request_id in cancelled and got["finish_reason"] is None:
            assert len(actual[job.request_id]) == silent_from[job.request_id]
            assert got["tokens"] == whole["tokens"][: len(got["tokens"])]
        else:
            assert_same(actual[job.request_id], expected[job.request_id])


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2"])
def test_greedy_output_is_that_of_generate(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path)
    oracle = Oracle(folder)
    prompts = [PROMPT[:1] * (3 * index + 1) + PROMPT + [index + 3] for index in range(8)]
    engine = make_engine(folder, overlap="on", num_blocks=10, block_size=8, max_num_batched_tokens=24)
    assert run(engine, map(make_job, prompts)) == [oracle.greedy(prompt) for prompt in prompts]
    assert engine.stats()["m"].num_preemptions > 0


@pytest.fixture
def engine(folder: Path) -> Engine:
    return make_engine(folder, overlap="on")


@contextmanager
def watched(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Notes what the engine does: l for a launch, c for a collection."""
    notes: list[str] = []
    launch, collect = GenerationRunner.launch, LaunchedBatch.collect
    with monkeypatch.context() as patch:
        patch.setattr(GenerationRunner, "launch", lambda self, batch: notes.append("l") or launch(self, batch))
        patch.setattr(LaunchedBatch, "collect", lambda self: notes.append("c") or collect(self))
        yield notes


def test_the_next_step_is_launched_before_this_one_is_collected(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for overlapped, expected in ((engine, "llclclcc"), (make_engine(folder), "lclclclc")):
        with watched(overlapped, monkeypatch) as notes:
            run(overlapped, [make_job(PROMPT, max_tokens=4, ignore_eos=True)])
        assert "".join(notes) == expected


def test_a_job_that_must_see_its_tokens_joins_every_second_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(engine, monkeypatch) as notes:
        run(engine, [make_job(PROMPT, max_tokens=3, ignore_eos=True, grammar="start: /[0-9]{3}/")])
    assert "".join(notes) == "lclclc"


def test_penalties_wait_for_no_token(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched(engine, monkeypatch) as notes:
        run(engine, [make_job(PROMPT, max_tokens=4, ignore_eos=True, presence_penalty=0.5)])
    assert "".join(notes) == "llclclcc"


def test_a_job_that_ends_by_itself_has_one_row_too_many_and_says_nothing_of_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tokens,) = run(engine, [make_job(PROMPT, max_tokens=8, ignore_eos=True)])
    stop = next(token for index, token in enumerate(tokens) if index >= 2 and token not in tokens[:index])
    length = tokens.index(stop) + 1
    job = make_job(PROMPT, max_tokens=8, stop_token_ids=(stop,))
    with watched(engine, monkeypatch) as notes:
        outputs = step_through(engine, [job])[job.request_id]
    assert told(outputs)["tokens"] == tokens[:length]
    assert outputs[-1].stop_token_id == stop
    assert notes.count("l") == length + 1


def test_a_conversation_goes_on_from_the_prefix_cache_of_one_that_ended_by_itself(folder: Path) -> None:
    engine = make_engine(folder, overlap="on", block_size=4)
    fresh = make_engine(folder, block_size=4, enable_prefix_caching=False)
    for number in range(8):
        prompt = [number + 10, *PROMPT]
        bias = {"logit_bias": {EOS_ID: 6.0}, "temperature": 1.0, "seed": number}
        (answer,) = run(engine, [make_job(prompt, max_tokens=12, **bias)])
        longer = [*prompt, *answer, 77, 78]
        hits = engine.stats()["m"].prefix_cache_hits
        assert run(engine, [make_job(longer)]) == run(fresh, [make_job(longer)])
        # The answer's last token may have been computed by the row too many, and is right then too.
        assert engine.stats()["m"].prefix_cache_hits - hits >= (len(prompt) + len(answer) - 1) // 4 * 4


def test_what_is_in_flight_outlives_a_smaller_kv_memory_and_an_unloaded_model(folder: Path) -> None:
    jobs = [make_job([*PROMPT, number], max_tokens=9) for number in range(3)]
    expected = step_through(make_engine(folder), jobs)
    engine = make_engine(folder, overlap="on", kv_cache_memory=0)

    def shrink(step: int) -> None:
        if step == 4:
            assert engine.shrink_kv_memory(1 << 20)

    actual = step_through(engine, jobs, shrink)
    for job in jobs:
        assert_same(actual[job.request_id], expected[job.request_id])
    job = make_job(PROMPT)
    engine.add(job)
    engine.step()
    engine.cancel(job.request_id)
    engine.remove("m")
    assert not engine.has_work


@pytest.mark.parametrize("half", ["launch", "collect"])
def test_a_step_that_fails_ends_its_requests_once(engine: Engine, half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [make_job([*PROMPT, number], max_tokens=6) for number in range(2)]
    expected = run(engine, jobs[1:])

    def fail(self: object, *batch: GenerationBatch) -> None:
        raise RuntimeError("device on fire")

    engine.add(jobs[0])
    outputs = engine.step().outputs
    with monkeypatch.context() as patch:
        patch.setattr(GenerationRunner if half == "launch" else LaunchedBatch, half, fail)
        outputs += engine.step().outputs
    while engine.has_work:
        outputs += engine.step().outputs
    assert [output.finish_reason for output in outputs] == [None] * (len(outputs) - 1) + ["error"]
    assert outputs[-1].error is not None and outputs[-1].error.status == 500
    assert engine.stats()["m"].kv_blocks_used == 0
    assert run(engine, [make_job(jobs[1].prompt_token_ids, max_tokens=6)]) == expected


def test_what_a_failed_step_left_in_the_cache_reaches_no_other_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(folder, overlap="on", block_size=4)
    first, second = make_job([*PROMPT, 1], max_tokens=6), make_job([*PROMPT, 2], max_tokens=6)
    (expected,) = run(make_engine(folder), [second])
    engine.add(first)
    outputs = engine.step().outputs
    engine.add(second)  # it will find the first one's block, which is in flight

    def fail(self: LaunchedBatch) -> None:
        raise RuntimeError("device on fire")

    with monkeypatch.context() as patch:
        patch.setattr(LaunchedBatch, "collect", fail)
        outputs += engine.step().outputs
    assert engine.stats()["m"].prefix_cache_hits == 4
    while engine.has_work:
        outputs += engine.step().outputs
    assert [output.finish_reason for output in outputs if output.request_id == first.request_id] == ["error"]
    assert [token for output in outputs for token in output.token_ids] == expected
    assert engine.stats()["m"].kv_blocks_used == 0


def test_two_models_and_texts_share_overlapped_steps(folder: Path, tmp_path: Path) -> None:
    def mixed(overlap: str) -> dict[str, Any]:
        engine = make_engine(folder, overlap=overlap, max_num_batched_tokens=24)
        for spec in (
            ModelSpec("n", str(other), "generate", dtype="float32"),
            ModelSpec("e", str(minilm_folder()), "embed", dtype="float32"),
        ):
            engine.install(load_runner(spec, engine.config))
        for number in range(4):
            job = make_job([*PROMPT, number], max_tokens=5 + number)
            engine.add(Submit(f"m{number}", "m", job.prompt_token_ids, job.sampling, float(number)))
            engine.add(Submit(f"n{number}", "n", job.prompt_token_ids, job.sampling, float(number)))
        engine.add(Embed("texts", "e", [[101, 2023, 102], [101, *range(2000, 2030), 102]], 0.0))
        found: dict[str, Any] = {}
        while engine.has_work:
            result = engine.step()
            for output in result.outputs:
                found[output.request_id] = found.get(output.request_id, []) + output.token_ids
            for embedding in result.embeddings:
                found[embedding.request_id] = embedding.data
        return found

    other = make_tiny("qwen3", tmp_path)
    assert mixed("on") == mixed("off")


def test_texts_are_collected_after_the_next_launch(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec("e", str(minilm_folder()), "embed", dtype="float32")
    runner = load_runner(spec, engine.config)
    assert isinstance(runner, EncoderRunner)
    small = make_engine(folder, overlap="on", max_num_batched_tokens=24)
    small.install(runner)
    texts = [[101, *range(2000, 2015), 102] for _ in range(3)]  # one in each step
    notes: list[str] = []
    launch, collect = EncoderRunner.launch, LaunchedTexts.collect
    monkeypatch.setattr(EncoderRunner, "launch", lambda self, *texts: notes.append("l") or launch(self, *texts))
    monkeypatch.setattr(LaunchedTexts, "collect", lambda self: notes.append("c") or collect(self))
    small.add(Embed("texts", "e", texts, 0.0))
    small.add(Embed("gone", "e", texts[:1], 1.0))
    found = []
    for step in range(8):
        found += small.step().embeddings
        if step == 3:
            small.cancel("gone")  # while it is computed
    assert "".join(notes) == "llclclcc"
    assert [output.request_id for output in found] == ["texts"]
    assert found[0].data == runner.execute(texts).tobytes()
    assert not small.has_work
    # A failure is told once, of whatever steps the job's texts were in.
    small.add(Embed("unlucky", "e", texts, 2.0))
    small.step()
    monkeypatch.setattr(LaunchedTexts, "collect", lambda self: 1 / 0)
    (output,) = [output for _ in range(4) for output in small.step().embeddings]
    assert output.error is not None
    assert not small.has_work


@contextmanager
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the engine's own code wait for no tensor; what kernels do on a CPU is their affair."""

    def guarded(name: str) -> Callable[..., Any]:
        original = getattr(torch.Tensor, name)

        def call(self: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            caller = sys._getframe(1).f_code.co_filename
            assert "/scheduler/" not in caller or "/models/" in caller, f"{caller} waits for the device with {name}"
            return original(self, *arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
            patch.setattr(torch.Tensor, name, guarded(name))
        yield


def test_a_launch_waits_for_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = GenerationRunner.launch
    launches = 0

    def guarded_launch(self: GenerationRunner, batch: GenerationBatch) -> LaunchedBatch:
        nonlocal launches
        launches += 1
        with no_waiting(monkeypatch):
            return launch(self, batch)

    monkeypatch.setattr(GenerationRunner, "launch", guarded_launch)
    jobs = [
        make_job(PROMPT, max_tokens=6),
        make_job(PROMPT[:2], max_tokens=6, temperature=1.0, logprobs=2),
        make_job(PROMPT * 5, max_tokens=6, temperature=1.0, logit_bias={5: 1.0}, prompt_logprobs=1),
        make_job(PROMPT * 2, max_tokens=6, presence_penalty=0.5),
    ]
    run(engine, jobs)
    assert launches >= 6
    with pytest.raises(AssertionError, match="waits for the device"), no_waiting(monkeypatch):
        LaunchedBatch(torch.device("cpu"), engine_sample()).collect()


def engine_sample() -> Any:
    """What a sampler gives, for one row."""
    from penstock.scheduler.results import SampledRows

    return SampledRows(torch.tensor([3]), [], None)
