"""What the engine finds out about the machine."""

from pathlib import Path

import pytest
import torch

from penstock.scheduler import device
from penstock.scheduler.config import EngineConfig


def test_automatic_values_are_filled_in() -> None:
    config = device.resolve(EngineConfig(device="cpu", max_num_seqs=1000))
    assert (config.device, config.overlap) == ("cpu", "off")
    assert 1 <= config.num_threads == torch.get_num_threads()
    assert config.max_num_seqs == config.max_num_batched_tokens == 512


def test_given_values_stay() -> None:
    given = EngineConfig(
        device="cpu", max_num_seqs=4, max_num_batched_tokens=64, num_threads=3, itl_target_ms=30, overlap="on"
    )
    assert device.resolve(given) == given


def test_the_kv_cache_takes_a_share_of_the_memory_that_is_there() -> None:
    memory = device.memory_for_kv_cache(EngineConfig(device="cpu"), keep_free=0)
    assert 16 << 20 < memory <= 2 << 30
    assert memory < device.available_memory("cpu") <= device.total_memory("cpu")
    assert device.memory_for_kv_cache(EngineConfig(device="cpu"), keep_free=device.total_memory("cpu")) == 0


def test_a_container_limit_counts_files_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    for name, text in (("max", "5000\n"), ("current", "4000\n"), ("stat", "anon 1000\ninactive_file 2500\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert device.available_memory("cpu") == 5000 - 1500
    assert device.total_memory("cpu") == 5000
