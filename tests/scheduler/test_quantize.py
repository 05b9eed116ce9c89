"""Generation models in 8 bits: what is rounded, what is refused."""

import logging
from pathlib import Path

import pytest
import torch
from tiny_models import make_tiny
from torch import nn
from transformers import LlamaConfig

from penstock.kernels.linear import can_round_to_int8
from penstock.kernels.linear_native import Int8Weight
from penstock.kernels.silu_mul import silu_mul
from penstock.scheduler.config import EngineConfig, ModelSpec, Quantization
from penstock.scheduler.errors import ModelLoadError
from penstock.scheduler.models import quantize
from penstock.scheduler.models.fp8_linear import Fp8Linear, add_norm_linear, norm_linear, silu_mul_linear
from penstock.scheduler.models.fused_decoder import FusedDecoder
from penstock.scheduler.models.linear import PackedLinear
from penstock.scheduler.models.rms_norm import RMSNorm
from penstock.scheduler.runner import GenerationRunner

CONFIG = EngineConfig(device="cpu", block_size=16, num_threads=1)


def spec(folder: Path, quantization: Quantization = "int8") -> ModelSpec:
    return ModelSpec("tiny", str(folder), "generate", dtype="bfloat16", quantization=quantization)


@pytest.mark.skipif(not can_round_to_int8(), reason="no native kernels on this machine")
def test_a_model_is_loaded_in_8_bits(tmp_path: Path) -> None:
    runner = GenerationRunner.load(spec(make_tiny("llama", tmp_path)), CONFIG, lambda stage, done: None)
    layers = [module for module in runner._model.modules() if isinstance(module, PackedLinear)]
    assert layers
    assert all(isinstance(layer.packed, Int8Weight) for layer in layers)


@pytest.mark.skipif(not can_round_to_int8(), reason="no native kernels on this machine")
def test_layers_that_run_as_one_call_take_the_new_weights(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path, dtype=torch.bfloat16, head_dim=32)
    runner = GenerationRunner.load(spec(folder), CONFIG, lambda stage, done: None)
    (decoder,) = [module for module in runner._model.modules() if isinstance(module, FusedDecoder)]
    assert decoder._native is not None
    for layer in decoder._native._layers:
        assert all(isinstance(one, Int8Weight) for one in (layer.qkv, layer.output, layer.gate_up, layer.down))


@pytest.mark.parametrize(
    ("quantization", "device", "dtype", "complaint"),
    [
        ("int8", "cuda", torch.bfloat16, "quantization int8 of tiny runs on a CPU, and the device is cuda"),
        (
            "int8",
            "cpu",
            torch.float32,
            "quantization int8 of tiny starts from bfloat16, and the dtype is torch.float32",
        ),
        ("fp8", "cuda", torch.float16, "quantization fp8 of tiny starts from bfloat16, and the dtype is torch.float16"),
        ("fp8", "cuda", torch.bfloat16, "quantization fp8 of tiny needs a GPU with float8"),
    ],
)
def test_what_cannot_run_is_refused_by_name(
    quantization: Quantization,
    device: str,
    dtype: torch.dtype,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ModelLoadError, match=complaint):
        quantize.check_quantization(spec(tmp_path, quantization), LlamaConfig(), torch.device(device), dtype)


def test_a_checkpoint_in_few_bits_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelLoadError, match="the checkpoint is quantized already"):
        quantize.check_quantization(spec(tmp_path, "fp8"), config, torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])  # whose layers are fused, and whose linear layers alone are
def test_all_linear_layers_but_the_head_are_rounded_to_float8(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        runner = GenerationRunner.load(spec(make_tiny(name, tmp_path), "fp8"), CONFIG, lambda stage, done: None)
    modules = list(runner._model.modules())
    num_rounded = sum(isinstance(module, Fp8Linear) for module in modules)
    assert num_rounded == 4 * runner._model.config.num_hidden_layers  # three and two products are one each
    assert [module for module in modules if isinstance(module, PackedLinear)] == [runner._model.get_output_embeddings()]
    assert "slower than bfloat16 on a CPU" in caplog.text


def test_fused_and_separate_operations_before_float8_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    states, added = (torch.randn(5, 64, generator=generator).to(torch.bfloat16) for _ in range(2))
    norm = RMSNorm(torch.randn(64, generator=generator).to(torch.bfloat16), 1e-5)
    linear = Fp8Linear(torch.randn(32, 64, generator=generator).to(torch.bfloat16), None)
    output, total = add_norm_linear(added, states, norm, linear)
    assert torch.equal(total, added + states)
    assert torch.equal(output, norm_linear(norm, linear, total))
    # The separate operations round what they hand over to bfloat16, which may take it to float8's next number.
    torch.testing.assert_close(output, linear(norm(total)), rtol=0.1, atol=0.5)
    gate_up = torch.randn(5, 128, generator=generator).to(torch.bfloat16)
    torch.testing.assert_close(silu_mul_linear(gate_up, linear), linear(silu_mul(gate_up)), rtol=0.1, atol=0.5)


def test_a_machine_without_the_kernels_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(quantize, "can_round_to_int8", lambda: False)
    with pytest.raises(ModelLoadError, match="needs Penstock's C kernels"):
        quantize.check_quantization(spec(tmp_path), LlamaConfig(), torch.device("cpu"), torch.bfloat16)


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="finds no linear layers in tiny"):
        quantize.quantize(nn.Sequential(nn.LayerNorm(4)), spec(tmp_path))
