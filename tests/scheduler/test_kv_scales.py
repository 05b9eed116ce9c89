"""Keys and values in float8: how they are scaled, how much room they take, and that engines serve them."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_harness import make_job, run
from tiny_models import make_tiny

from penstock.kernels.quantize_fp8 import FP8
from penstock.scheduler.config import EngineConfig, KVCacheDtype, ModelSpec
from penstock.scheduler.engine import Engine
from penstock.scheduler.errors import ModelLoadError
from penstock.scheduler.models.kv_scales import check_kv_cache
from penstock.scheduler.runner import GenerationRunner

FAMILIES = ("llama", "gemma3")  # whose layers are fused, and whose layers are not
CONFIG = EngineConfig(device="cpu", num_threads=1, kv_cache_memory=16 << 20, max_num_batched_tokens=48)


def spec(name: str, folder: Path, kv_cache_dtype: KVCacheDtype = "fp8") -> ModelSpec:
    return ModelSpec(name, str(folder), "generate", dtype="float32", kv_cache_dtype=kv_cache_dtype)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_tiny(name, tmp_path_factory.mktemp(name), seed=3) for name in FAMILIES}


def load(name: str, folder: Path, kv_cache_dtype: KVCacheDtype = "fp8") -> GenerationRunner:
    return GenerationRunner.load(spec(name, folder, kv_cache_dtype), CONFIG, lambda stage, done: None)


@pytest.fixture(scope="module")
def runners(folders: dict[str, Path]) -> dict[str, GenerationRunner]:
    return {name: load(name, folder) for name, folder in folders.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_take_a_quarter_of_float32_and_numbers_fit(
    name: str, folders: dict[str, Path], runners: dict[str, GenerationRunner]
) -> None:
    assert 4 * runners[name].kv_bytes_per_block == load(name, folders[name], "auto").kv_bytes_per_block
    engine = Engine(CONFIG)
    engine.install(runners[name])
    run(engine, [replace(make_job([50, 60, *range(70, 100)]), model=name)])
    for cache in runners[name]._caches.values():
        for states, scale in ((cache.key, cache.key_scale), (cache.value, cache.value_scale)):
            assert states.dtype == FP8
            assert scale is not None and scale.shape == states.shape[1:2]
            assert 448 / 16 < states.float().abs().max() < 448  # neither lost nor cut off
    engine.remove(name)


def test_models_share_memory_as_they_answer_alone(runners: dict[str, GenerationRunner]) -> None:
    prompts = [[50, 60, 70 + number, *range(80, 80 + 9 * number)] for number in range(6)]
    jobs = {name: [replace(make_job(prompt), model=name) for prompt in prompts] for name in FAMILIES}
    expected = {}
    for name, runner in runners.items():
        engine = Engine(CONFIG)
        engine.install(runner)
        expected[name] = [tokens for job in jobs[name] for tokens in run(engine, [job])]
        engine.remove(name)
    few_blocks = 9 * max(runner.kv_bytes_per_block for runner in runners.values())
    engine = Engine(replace(CONFIG, kv_cache_memory=few_blocks))
    for runner in runners.values():
        engine.install(runner)
    for _ in range(2):  # the second time with what is left in the prefix cache
        mixed = [replace(job, request_id=f"{name} {job.request_id}") for name in FAMILIES for job in jobs[name]]
        outputs = run(engine, mixed)
        assert outputs == expected["llama"] + expected["gemma3"]
    stats = engine.stats()
    assert sum(stats[name].num_preemptions for name in FAMILIES) > 0


def test_a_device_without_float8_is_refused(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    asked = spec("llama", folders["llama"])
    with pytest.raises(ModelLoadError, match="kv_cache_dtype fp8 of llama needs a GPU with float8"):
        check_kv_cache(asked, torch.device("cuda"))
    check_kv_cache(replace(asked, kv_cache_dtype="auto"), torch.device("cuda"))


def test_a_cpu_says_that_it_is_slow(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_kv_cache(spec("llama", folders["llama"]), torch.device("cpu"))
    assert "slower than auto on a CPU" in caplog.text
