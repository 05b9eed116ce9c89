"""Generation models in 8 bits: what is rounded, what is refused."""

from pathlib import Path

import pytest
import torch
from tiny_models import make_tiny
from torch import nn

from penstock.kernels.linear import can_round_to_int8
from penstock.kernels.linear_native import Int8Weight
from penstock.scheduler.config import DtypeName, EngineConfig, ModelSpec
from penstock.scheduler.errors import ModelLoadError
from penstock.scheduler.models import quantize
from penstock.scheduler.models.fused_decoder import FusedDecoder
from penstock.scheduler.models.linear import PackedLinear
from penstock.scheduler.runner import GenerationRunner


def spec(folder: Path, dtype: DtypeName = "bfloat16") -> ModelSpec:
    return ModelSpec("tiny", str(folder), "generate", dtype=dtype, quantization="int8")


@pytest.mark.skipif(not can_round_to_int8(), reason="no native kernels on this machine")
def test_a_model_is_loaded_in_8_bits(tmp_path: Path) -> None:
    config = EngineConfig(device="cpu", block_size=16, num_threads=1)
    runner = GenerationRunner.load(spec(make_tiny("llama", tmp_path)), config, lambda stage, done: None)
    layers = [module for module in runner._model.modules() if isinstance(module, PackedLinear)]
    assert layers
    assert all(isinstance(layer.packed, Int8Weight) for layer in layers)


@pytest.mark.skipif(not can_round_to_int8(), reason="no native kernels on this machine")
def test_layers_that_run_as_one_call_take_the_new_weights(tmp_path: Path) -> None:
    config = EngineConfig(device="cpu", block_size=16, num_threads=1)
    folder = make_tiny("llama", tmp_path, dtype=torch.bfloat16, head_dim=32)
    runner = GenerationRunner.load(spec(folder), config, lambda stage, done: None)
    (decoder,) = [module for module in runner._model.modules() if isinstance(module, FusedDecoder)]
    assert decoder._native is not None
    for layer in decoder._native._layers:
        assert all(isinstance(one, Int8Weight) for one in (layer.qkv, layer.output, layer.gate_up, layer.down))


@pytest.mark.parametrize(
    ("device", "dtype", "complaint"),
    [
        ("cuda", torch.bfloat16, "quantization int8 of tiny runs on a CPU, and the device is cuda"),
        ("cpu", torch.float32, "quantization int8 of tiny starts from bfloat16, and the dtype is torch.float32"),
    ],
)
def test_what_cannot_run_is_refused_by_name(device: str, dtype: torch.dtype, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=complaint):
        quantize.check_quantization(spec(tmp_path), torch.device(device), dtype)


def test_a_machine_without_the_kernels_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(quantize, "can_round_to_int8", lambda: False)
    with pytest.raises(ModelLoadError, match="needs Penstock's C kernels"):
        quantize.check_quantization(spec(tmp_path), torch.device("cpu"), torch.bfloat16)


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="finds no linear layers in tiny"):
        quantize.quantize(nn.Sequential(nn.LayerNorm(4)), spec(tmp_path))
