"""Several models in one engine: they share the KV memory, come and go, and change nobody's tokens."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from engine_harness import Oracle, make_engine, make_job
from starter_models import minilm_folder, smollm2_folder
from tiny_models import make_tiny

from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.engine import Engine
from penstock.scheduler.errors import ModelLoadError, UnknownModelError
from penstock.scheduler.loader import load_runner
from penstock.scheduler.messages import Submit

PROMPTS = [[50, 60, 70 + number, *range(80, 80 + 9 * number)] for number in range(6)]
BLOCK_BYTES = {"llama": 3 * 2 * 2 * 16 * 16 * 4, "gemma3": 4 * 2 * 2 * 16 * 16 * 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models whose blocks differ in size."""
    return {name: make_tiny(name, tmp_path_factory.mktemp(name), seed=3) for name in ("llama", "gemma3")}


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> dict[str, list[list[int]]]:
    oracles = {name: Oracle(folder) for name, folder in folders.items()}
    return {name: [oracle.greedy(prompt) for prompt in PROMPTS] for name, oracle in oracles.items()}


def spec(name: str, folder: Path) -> ModelSpec:
    return ModelSpec(name, str(folder), "generate", dtype="float32")


def install(engine: Engine, name: str, folder: Path) -> None:
    engine.install(load_runner(spec(name, folder), engine.config))


def jobs_for(model: str) -> list[Submit]:
    return [replace(make_job(prompt), model=model) for prompt in PROMPTS]


def run(engine: Engine, jobs: list[Submit]) -> list[list[int]]:
    """Output tokens of each job."""
    tokens: dict[str, list[int]] = {job.request_id: [] for job in jobs}
    for job in jobs:
        engine.add(job)
    while engine.has_work:
        for output in engine.step().outputs:
            assert output.error is None
            tokens[output.request_id] += output.token_ids
    return list(tokens.values())


@pytest.fixture
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    """Two models with memory for a few requests only, so that they take it from each other all the time."""
    memory = 9 * BLOCK_BYTES["gemma3"]
    engine = Engine(EngineConfig(device="cpu", num_threads=1, kv_cache_memory=memory, max_num_batched_tokens=48))
    for name, folder in folders.items():
        install(engine, name, folder)
    yield engine


def test_two_models_in_one_memory_answer_like_each_alone(engine: Engine, expected: dict[str, list[list[int]]]) -> None:
    assert engine.describe("llama").num_kv_blocks == 12
    assert engine.describe("gemma3").num_kv_blocks == 9
    for _ in range(2):  # the second time with what is left in the prefix cache
        mixed = [job for pair in zip(jobs_for("llama"), jobs_for("gemma3"), strict=True) for job in pair]
        outputs = run(engine, mixed)
        assert outputs[::2] == expected["llama"]
        assert outputs[1::2] == expected["gemma3"]
    stats = engine.stats()
    assert stats["llama"].num_preemptions + stats["gemma3"].num_preemptions > 0
    assert stats["llama"].kv_blocks_used == stats["gemma3"].kv_blocks_used == 0


def test_one_model_alone_may_have_all_the_memory(engine: Engine, expected: dict[str, list[list[int]]]) -> None:
    run(engine, jobs_for("llama"))
    longest = replace(make_job([1, 2, 3], max_tokens=9 * 16 - 3, ignore_eos=True), model="gemma3")
    (tokens,) = run(engine, [longest])
    assert len(tokens) == 9 * 16 - 3
    assert run(engine, jobs_for("llama")) == expected["llama"]


def test_a_model_can_go_and_come_back(
    engine: Engine, folders: dict[str, Path], expected: dict[str, list[list[int]]]
) -> None:
    run(engine, jobs_for("gemma3"))
    engine.remove("gemma3")
    with pytest.raises(UnknownModelError):
        engine.add(jobs_for("gemma3")[0])
    assert list(engine.stats()) == ["llama"]
    assert run(engine, jobs_for("llama")) == expected["llama"]
    install(engine, "gemma3", folders["gemma3"])
    assert run(engine, jobs_for("gemma3")) == expected["gemma3"]
    with pytest.raises(ModelLoadError, match="already a model"):
        install(engine, "gemma3", folders["gemma3"])


def test_a_model_with_jobs_says_so(engine: Engine) -> None:
    job = jobs_for("llama")[0]
    engine.add(job)
    assert engine.has_jobs("llama")
    assert not engine.has_jobs("gemma3")
    engine.cancel(job.request_id)
    assert not engine.has_jobs("llama")


def test_an_unloaded_model_leaves_nothing_behind(engine: Engine) -> None:
    run(engine, jobs_for("llama"))
    job = jobs_for("gemma3")[0]
    engine.add(job)
    model, memory = weakref.ref(engine._generation["llama"]._model), weakref.ref(engine._kv_memory._storage)
    gc.disable()
    try:
        engine.remove("llama")  # beside running jobs, so that weights must not wait for the garbage collector
        assert model() is None
        engine.cancel(job.request_id)
        engine.remove("gemma3")
        assert memory() is None
    finally:
        gc.enable()


def test_memory_goes_back_to_the_system() -> None:
    """SmolLM2 takes some 300 MB of weights, MiniLM 90."""
    process = psutil.Process()
    engine = Engine(EngineConfig(device="cpu", num_threads=1, kv_cache_memory=128 << 20))
    install(engine, "chat", smollm2_folder())
    engine.install(load_runner(ModelSpec("texts", str(minilm_folder()), "embed"), engine.config))
    before = process.memory_info().rss
    engine.remove("chat")
    assert before - process.memory_info().rss > 350 << 20
    before = process.memory_info().rss
    engine.remove("texts")
    assert before - process.memory_info().rss > 60 << 20


def test_steps_do_not_depend_on_the_default_dtype(engine: Engine, expected: dict[str, list[list[int]]]) -> None:
    """Loading another model in its thread changes it for the whole process."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        outputs = run(engine, jobs_for("llama") + jobs_for("gemma3"))
        sampled = [replace(make_job(PROMPTS[3], temperature=0.9, top_p=0.9, logprobs=2, seed=5), model="llama")]
        under_bfloat16 = run(engine, sampled)
    finally:
        torch.set_default_dtype(torch.float32)
    assert outputs == expected["llama"] + expected["gemma3"]
    assert under_bfloat16 == run(engine, sampled)


def test_a_pace_to_keep_changes_no_token(folders: dict[str, Path], expected: dict[str, list[list[int]]]) -> None:
    engine = make_engine(folders["llama"], itl_target_ms=1, max_num_batched_tokens=256)
    assert run(engine, jobs_for("m")) == expected["llama"]
