"""Rounds the linear layers of a packed model to 8 bits, on the CPU.

Weights get one scale for each output, inputs one for each token in each product (`kernels/linear_native.py`). That is
half of bfloat16's bytes at few rows and twice its products at many; benchmarks/README.md has the speed and the loss.
"""

import torch
from torch import nn

from penstock.kernels.linear import can_round_to_int8, round_to_int8

from ..config import ModelSpec
from ..errors import ModelLoadError
from .fused_decoder import FusedDecoder
from .linear import PackedLinear


def check_quantization(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
    """Whether `quantize` can do what `spec` asks for, known before any weight is read.

    Raises:
        ModelLoadError: it cannot; the message says why and what can be done.
    """
    if spec.quantization == "none":
        return
    asked = f"quantization {spec.quantization} of {spec.name}"
    if device.type != "cpu":
        raise ModelLoadError(f"{asked} runs on a CPU, and the device is {device.type}: use device cpu or leave it out")
    if dtype != torch.bfloat16:
        raise ModelLoadError(
            f"{asked} starts from bfloat16, and the dtype is {dtype}: use dtype bfloat16 or leave it out"
        )
    if not can_round_to_int8():
        raise ModelLoadError(
            f"{asked} needs Penstock's C kernels, which need Linux, gcc and a processor with avx512_bf16: leave it out"
        )


def quantize(model: nn.Module, spec: ModelSpec) -> None:
    """Exchange the weights of all packed linear layers, the head included, as `spec` asks for.

    Raises:
        ModelLoadError: the model has no such layers.
    """
    if spec.quantization == "none":
        return
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    if not layers:
        raise ModelLoadError(f"quantization {spec.quantization} finds no linear layers in {spec.name}: leave it out")
    for layer in layers:
        layer.packed = round_to_int8(layer.packed)
    for module in model.modules():
        if isinstance(module, FusedDecoder):
            module.describe_layers()
