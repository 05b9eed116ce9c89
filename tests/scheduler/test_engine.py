"""What a caller of the engine sees: ends, limits, log probabilities, repeatable sampling, failures that stay alone."""

from pathlib import Path

import numpy as np
import pytest
from engine_harness import Oracle, make_engine, make_job, run
from starter_models import minilm_folder
from tiny_models import EOS_ID, make_tiny

from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.engine import Engine
from penstock.scheduler.errors import ContextLengthError, ModelLoadError, RequestError, UnknownModelError
from penstock.scheduler.loader import load_runner
from penstock.scheduler.messages import Embed, Submit
from penstock.scheduler.plan import GenerationBatch
from penstock.scheduler.sampling_params import SamplingParams

PROMPT = [50, 60, 70, 80, 90]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return make_engine(folder)


def last_output(engine: Engine, job: Submit):  # type: ignore[no-untyped-def]
    engine.add(job)
    outputs = []
    while engine.has_work:
        outputs += engine.step().outputs
    return outputs[-1]


def test_it_ends_at_max_tokens_with_timings(engine: Engine) -> None:
    output = last_output(engine, make_job(PROMPT, max_tokens=3, ignore_eos=True))
    assert (output.finish_reason, output.stop_token_id) == ("length", None)
    assert output.timings is not None
    assert output.timings.decode >= 0


def test_it_ends_at_a_stop_token_which_is_the_last_of_the_output(engine: Engine) -> None:
    (tokens,) = run(engine, [make_job(PROMPT, max_tokens=8)])
    stop = tokens[3]
    first = tokens.index(stop)
    output = last_output(engine, make_job(PROMPT, max_tokens=8, stop_token_ids=(stop,)))
    assert (output.finish_reason, output.stop_token_id, output.token_ids) == ("stop", stop, [stop])
    (again,) = run(engine, [make_job(PROMPT, max_tokens=8, stop_token_ids=(stop,))])
    assert again == tokens[: first + 1]


def test_the_models_end_token_ends_it_unless_ignored_or_too_early(engine: Engine) -> None:
    bias = {EOS_ID: 100.0}
    assert run(engine, [make_job(PROMPT, logit_bias=bias)]) == [[EOS_ID]]
    assert run(engine, [make_job(PROMPT, max_tokens=4, logit_bias=bias, ignore_eos=True)]) == [[EOS_ID] * 4]
    (late,) = run(engine, [make_job(PROMPT, max_tokens=9, logit_bias=bias, min_tokens=3)])
    assert EOS_ID not in late[:3]
    assert late[3:] == [EOS_ID]


def test_the_same_seed_samples_the_same_tokens_whatever_else_runs(engine: Engine) -> None:
    def sampled(seed: int) -> Submit:
        return make_job(PROMPT, max_tokens=20, seed=seed, temperature=1.3, top_p=0.95, ignore_eos=True)

    (alone,) = run(engine, [sampled(7)])
    others = [
        make_job([100 + i] * (i + 1), max_tokens=5 + i, seed=i, temperature=0.5 * i, top_k=5 * i) for i in range(9)
    ]
    together = run(engine, [*others[:4], sampled(7), *others[4:], sampled(8)])
    assert together[4] == alone
    assert together[-1] != alone


def test_a_preempted_sampling_request_goes_on_with_the_same_tokens(folder: Path, engine: Engine) -> None:
    jobs = [dict(max_tokens=20, seed=seed, temperature=1.0, ignore_eos=True) for seed in range(4)]
    expected = run(engine, [make_job(PROMPT + [seed], **job) for seed, job in enumerate(jobs)])  # type: ignore[arg-type]
    small = make_engine(folder, num_blocks=5, block_size=8)
    assert run(small, [make_job(PROMPT + [seed], **job) for seed, job in enumerate(jobs)]) == expected  # type: ignore[arg-type]
    assert small.stats()["m"].num_preemptions > 0


def test_a_resumed_job_goes_on_with_the_same_tokens(engine: Engine) -> None:
    params = SamplingParams(max_tokens=20, seed=3, temperature=1.0, ignore_eos=True, presence_penalty=0.5)
    (whole,) = run(engine, [Submit("whole", "m", PROMPT, params, 0.0)])
    (rest,) = run(engine, [Submit("rest", "m", PROMPT, params, 0.0, output_token_ids=whole[:8])])
    assert rest == whole[8:]


def test_log_probabilities_are_of_the_unmodified_distribution(folder: Path, engine: Engine) -> None:
    import torch

    output = last_output(
        engine, make_job(PROMPT, max_tokens=1, logprobs=3, logit_bias={9: 100.0}, temperature=2.0, seed=1)
    )
    with torch.inference_mode():
        logits = Oracle(folder).model(torch.tensor([PROMPT])).logits[0, -1]
    expected = logits.log_softmax(-1)
    top = expected.topk(3)
    (logprobs,) = output.logprobs
    assert output.token_ids == [9]
    assert logprobs.logprob == pytest.approx(expected[9].item(), abs=1e-4)
    assert logprobs.top_token_ids == top.indices.tolist()
    assert logprobs.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-4)


def test_what_cannot_be_served_is_refused_and_leaves_nothing(engine: Engine) -> None:
    with pytest.raises(ContextLengthError, match="600 prompt tokens"):
        engine.add(make_job([5] * 600))
    with pytest.raises(UnknownModelError):
        engine.add(Submit("x", "nope", [1], SamplingParams(max_tokens=1, seed=0), 0.0))
    with pytest.raises(RequestError, match="token id 384 is not in the vocabulary, whose ids are 0 to 383"):
        engine.add(make_job([5, 384]))
    assert not engine.has_work


def test_a_cancelled_job_says_nothing_more(engine: Engine) -> None:
    job, other = make_job(PROMPT, max_tokens=50, ignore_eos=True), make_job(PROMPT + [4], max_tokens=6)
    engine.add(job)
    engine.add(other)
    engine.step()
    engine.cancel(job.request_id)
    seen = set()
    while engine.has_work:
        seen |= {output.request_id for output in engine.step().outputs}
    assert seen == {other.request_id}
    assert engine.stats()["m"].kv_blocks_used == 0


def test_a_step_that_fails_ends_its_requests_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(folder)
    (expected,) = run(engine, [make_job(PROMPT)])
    runner = engine._generation["m"]

    def fail_once(self: object, batch: GenerationBatch) -> None:
        monkeypatch.undo()
        raise RuntimeError("device on fire")

    monkeypatch.setattr(type(runner), "launch", fail_once)
    output = last_output(engine, make_job(PROMPT))
    assert output.finish_reason == "error"
    assert output.error is not None
    assert (output.error.status, output.error.code) == (500, "internal_error")
    assert "device on fire" not in output.error.message  # that is for the log
    assert engine.stats()["m"].kv_blocks_used == 0
    assert run(engine, [make_job(PROMPT)]) == [expected]


def test_n_sequences_of_one_prompt_compute_it_once(engine: Engine) -> None:
    prompt = [*range(100, 165)]  # four full blocks and one token
    before = engine.stats()["m"].prompt_tokens
    run(engine, [make_job(prompt, max_tokens=2, salt="n", seed=seed, temperature=1.0) for seed in range(5)])
    assert engine.stats()["m"].prompt_tokens - before == 65 + 4 * 1


@pytest.fixture(scope="module")
def mixed(folder: Path) -> Engine:
    """A chat and an embedding model in one engine."""
    engine = Engine(
        EngineConfig(
            device="cpu",
            num_threads=1,
            kv_cache_memory=16 << 20,
            max_num_batched_tokens=32,
            max_num_seqs=8,
            itl_target_ms=0,
        )
    )
    for spec in (
        ModelSpec("m", str(folder), "generate", dtype="float32"),
        ModelSpec("e", str(minilm_folder()), "embed", dtype="float32"),
    ):
        engine.install(load_runner(spec, engine.config))
    return engine


TEXTS = [[101, 2023, 102], [101, *range(2000, 2040), 102], [101, 7592, 2088, 102], [101, *range(3000, 3020), 102]]


def test_chat_and_embeddings_share_the_steps_and_change_nothing(folder: Path, engine: Engine, mixed: Engine) -> None:
    expected = run(engine, [make_job(PROMPT + [number], max_tokens=10) for number in range(3)])
    vectors = mixed._embedding["e"].execute(TEXTS)
    jobs = [make_job(PROMPT + [number], max_tokens=10) for number in range(3)]
    embeddings = []
    outputs: dict[str, list[int]] = {job.request_id: [] for job in jobs}
    mixed.add(jobs[0])
    mixed.add(Embed("texts", "e", TEXTS, 0.0))
    mixed.add(jobs[1])
    mixed.add(jobs[2])
    both = 0
    while mixed.has_work:
        result = mixed.step()
        embeddings += result.embeddings
        both += bool(result.outputs) and result.num_batched_tokens > len(result.outputs)
        for output in result.outputs:
            outputs[output.request_id] += output.token_ids
    assert list(outputs.values()) == expected
    (embedding,) = embeddings
    assert both > 0
    actual = np.frombuffer(embedding.data, "<f4").reshape(len(TEXTS), embedding.dim)
    np.testing.assert_allclose(actual, vectors, atol=1e-6)
    assert mixed.stats()["e"].prompt_tokens == sum(map(len, TEXTS))


def test_a_half_computed_embedding_job_can_be_cancelled(mixed: Engine) -> None:
    mixed.add(Embed("gone", "e", TEXTS * 3, 0.0))
    mixed.step()
    assert mixed.has_work
    mixed.cancel("gone")
    assert not mixed.has_work
    assert not mixed._vectors._unfinished


def test_an_embedding_step_that_fails_ends_its_jobs_alone(mixed: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = mixed._embedding["e"]

    def fail(self: object, inputs: list[list[int]], second_starts: list[int]) -> None:
        raise RuntimeError("device on fire")

    monkeypatch.setattr(type(runner), "launch", fail)
    mixed.add(Embed("unlucky", "e", TEXTS[:1], 0.0))
    (output,) = mixed.step().embeddings
    assert output.error is not None
    assert (output.request_id, output.error.status) == ("unlucky", 500)
    monkeypatch.undo()
    mixed.add(Embed("next", "e", TEXTS[:1], 0.0))
    (output,) = mixed.step().embeddings
    assert output.error is None
    assert not mixed.has_work


def test_a_model_without_memory_for_one_block_fails_alone(folder: Path) -> None:
    engine = Engine(EngineConfig(device="cpu", num_threads=1, kv_cache_memory=100))
    with pytest.raises(ModelLoadError, match="raise kv_cache_memory"):
        engine.install(load_runner(ModelSpec("m", str(folder), "generate"), engine.config))
    with pytest.raises(UnknownModelError):
        engine.add(make_job(PROMPT))
