"""The KV memory gives way to the weights of other models: how far, and that nobody's tokens change."""

from dataclasses import replace
from pathlib import Path

import pytest
from engine_harness import Oracle, make_job, run
from tiny_models import make_tiny

from penstock.scheduler import device
from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.engine import Engine
from penstock.scheduler.errors import ModelMemoryError
from penstock.scheduler.loader import ModelLoader, check_memory, load_runner

PROMPTS = [[50, 60, 70 + number, *range(80, 80 + 9 * number)] for number in range(6)]
BLOCK_BYTES = 3 * 2 * 2 * 16 * 16 * 4
LONGEST = 512 // 16 * BLOCK_BYTES  # one request of the model's whole context


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("llama"), seed=3)


def make_engine(folder: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int, **config: int) -> Engine:
    monkeypatch.setattr(device, "memory_for_kv_cache", lambda config, keep_free: num_bytes)
    engine = Engine(EngineConfig(device="cpu", num_threads=1, **config))
    for name in ("m", "other"):
        engine.install(load_runner(ModelSpec(name, str(folder), "generate", "float32"), engine.config))
    return engine


def test_requests_are_computed_again_in_what_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(folder, monkeypatch, 4 * LONGEST, max_num_batched_tokens=48)
    shrunk: list[bool] = []

    def between_steps(step: int) -> None:
        if step == 5:
            assert engine.scheduler.num_running > 1
            shrunk.append(engine.shrink_kv_memory(2 * LONGEST))

    jobs = [replace(make_job(prompt), model=model) for prompt in PROMPTS for model in ("m", "other")]
    outputs = run(engine, jobs, between_steps)
    oracle = Oracle(folder)
    assert shrunk == [True]
    assert outputs == [oracle.greedy(prompt) for prompt in PROMPTS for _ in range(2)]
    assert engine.describe("m").num_kv_blocks == 64
    assert engine.stats()["m"].num_preemptions > 0
    engine.remove("other")
    assert run(engine, [make_job(PROMPTS[0])]) == [oracle.greedy(PROMPTS[0])]


@pytest.mark.parametrize(
    ("num_bytes", "wanted", "config"),
    [
        (4 * LONGEST, 3 * LONGEST + 1, {}),  # no room for a request of the whole context
        (8 * LONGEST, 6 * LONGEST + 1, {}),  # less than a quarter
        (LONGEST // 2, 1, {}),  # too small for a whole context anyway
        (0, 1, {"kv_cache_memory": 4 * LONGEST}),  # the size is someone's wish
    ],
)
def test_it_does_not_give_everything(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int, wanted: int, config: dict[str, int]
) -> None:
    engine = make_engine(folder, monkeypatch, num_bytes, **config)
    before = engine.describe("m")
    assert not engine.shrink_kv_memory(wanted)
    assert engine.describe("m") == before
    if wanted > 1:
        assert engine.shrink_kv_memory(wanted - 1)


def test_an_engine_without_generation_models_has_nothing_to_give() -> None:
    assert not Engine(EngineConfig(device="cpu", num_threads=1)).shrink_kv_memory(1)


def test_steps_on_a_gpu_keep_memory_of_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec("m", str(folder), "generate", "float32")
    weights = 1000 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    monkeypatch.setattr(device, "total_memory", lambda name: weights)
    monkeypatch.setattr(device, "available_memory", lambda name: weights // 10)
    assert device.memory_for_weights("cpu") == weights // 10
    assert abs(device.memory_for_weights("cuda")) <= 1
    loader = ModelLoader(replace(EngineConfig(), device="cuda"), lambda: None)
    assert 0.9 * weights / 1000 < loader.missing_bytes(spec) < 1.2 * weights / 1000
    with pytest.raises(ModelMemoryError):
        check_memory("m", weights // 1000, "cuda")
    check_memory("m", weights // 1000, "cpu")
