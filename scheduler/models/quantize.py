"""Rounds the linear layers of a model that was sped up to 8 bits.

Weights get one scale for each output, inputs one for each token in each product. int8 is for the CPU
(`kernels/linear_native.py`): half of bfloat16's bytes at few rows and twice its products at many. fp8 is for GPUs that
multiply float8 (`kernels/linear_fp8.py`). benchmarks/README.md has what is measured of speed and loss.
"""

import logging

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from penstock.kernels.linear import can_round_to_int8, round_to_int8
from penstock.kernels.linear_fp8 import can_quantize_weight

from ..config import ModelSpec
from ..device import has_float8
from ..errors import ModelLoadError
from .fp8_linear import Fp8Linear
from .fused_decoder import FusedDecoder
from .linear import PackedLinear, is_plain

logger = logging.getLogger(__name__)


def check_quantization(spec: ModelSpec, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Whether `quantize` can do what `spec` asks for, known before any weight is read.

    Raises:
        ModelLoadError: it cannot; the message says why and what can be done.
    """
    if spec.quantization == "none":
        return
    asked = f"quantization {spec.quantization} of {spec.name}"
    if getattr(config, "quantization_config", None) is not None:
        raise ModelLoadError(f"{asked} starts from full weights, and the checkpoint is quantized already: leave it out")
    if spec.quantization == "int8" and device.type != "cpu":
        raise ModelLoadError(f"{asked} runs on a CPU, and the device is {device.type}: use fp8, or leave it out")
    if dtype != torch.bfloat16:
        raise ModelLoadError(
            f"{asked} starts from bfloat16, and the dtype is {dtype}: use dtype bfloat16 or leave it out"
        )
    if spec.quantization == "int8" and not can_round_to_int8():
        raise ModelLoadError(
            f"{asked} needs Penstock's C kernels, which need Linux, gcc and a processor with avx512_bf16: leave it out"
        )
    if spec.quantization == "fp8":
        if not has_float8(device):
            raise ModelLoadError(f"{asked} needs a GPU with float8 (compute capability 8.9 or later): leave it out")
        if device.type == "cpu":
            logger.warning("%s is slower than bfloat16 on a CPU: it is for trials there", asked)


def quantize(model: nn.Module, spec: ModelSpec) -> None:
    """Exchange the weights of the linear layers, as `spec` asks for: int8 all, fp8 all but the head.

    Raises:
        ModelLoadError: the model has no such layers.
    """
    if spec.quantization == "none":
        return
    num_rounded = _to_int8(model) if spec.quantization == "int8" else _to_fp8(model)
    if not num_rounded:
        raise ModelLoadError(f"quantization {spec.quantization} finds no linear layers in {spec.name}: leave it out")
    for module in model.modules():
        if isinstance(module, FusedDecoder):
            module.describe_layers()


def _to_int8(model: nn.Module) -> int:
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    for layer in layers:
        layer.packed = round_to_int8(layer.packed)
    return len(layers)


def _to_fp8(model: nn.Module) -> int:
    """The head stays: its outputs are compared with each other by their last digits, and nothing averages them."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    num_rounded = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is head:
                continue
            if isinstance(child, PackedLinear):
                weight, bias = child.packed.unpack()
            elif is_plain(child):
                weight, bias = child.weight.detach(), None if child.bias is None else child.bias.detach()
            else:
                continue
            if can_quantize_weight(weight):
                setattr(parent, name, Fp8Linear(weight, bias))
                num_rounded += 1
    return num_rounded
