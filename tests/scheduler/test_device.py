"""What the engine finds out about the machine."""

import pytest
import torch

from penstock.scheduler import device
from penstock.scheduler.config import EngineConfig


def test_automatic_values_are_filled_in() -> None:
    config = device.resolve(EngineConfig(device="cpu", max_num_seqs=1000))
    assert config.device == "cpu"
    assert 1 <= config.num_threads == torch.get_num_threads()
    assert config.max_num_seqs == config.max_num_batched_tokens == 512


def test_given_values_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    given = EngineConfig(device="cpu", max_num_seqs=4, max_num_batched_tokens=64, num_threads=3)
    assert device.resolve(given) == given


def test_the_kv_cache_takes_a_share_of_the_memory_that_is_there() -> None:
    memory = device.memory_for_kv_cache(EngineConfig(device="cpu"))
    assert 16 << 20 < memory <= 2 << 30
