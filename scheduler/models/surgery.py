"""Replaces parts of a loaded model by faster ones that compute the same.

A part is replaced where its structure shows what it does (exactly `nn.Linear`) or where it was compared with its
replacement on random input (RMS norms); whatever does not match stays as it is.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from .fused_decoder import fuse_decoder
from .fused_layer import fuse_layers
from .linear import PackedLinear, fuse, has_hooks, is_plain
from .rms_norm import fast_rms_norm

_FUSED_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of sibling layers that get the same input in every decoder of transformers that has them."""

_PACKABLE = (torch.bfloat16, torch.float32)


def speed_up(model: nn.Module, progress: Callable[[float], None]) -> None:
    """Fuse, pack and replace in place what can be; `progress` gets the share done, 0 to 1.

    Encoders of embedding models have the same parts, so this serves both kinds of models.
    """
    if isinstance(model, PreTrainedModel):
        fuse_layers(model, _can_pack)
        fuse_decoder(model)
    parents = [module for module in model.modules() if next(module.children(), None) is not None]
    for done, parent in enumerate(parents):
        _fuse_siblings(parent)
        _replace_children(parent)
        progress((done + 1) / len(parents))


def _fuse_siblings(parent: nn.Module) -> None:
    for names in _FUSED_GROUPS:
        layers = [layer for name in names if is_plain(layer := getattr(parent, name, None))]
        if len(layers) == len(names) and _can_fuse(layers):
            for name, part in zip(names, fuse(layers, packed=_can_pack(layers[0])), strict=True):
                setattr(parent, name, part)


def _can_fuse(layers: list[nn.Linear]) -> bool:
    first = layers[0]
    return all(
        layer.in_features == first.in_features
        and layer.weight.dtype == first.weight.dtype
        and (layer.bias is None) == (first.bias is None)
        for layer in layers
    )


def _replace_children(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        if is_plain(child) and _can_pack(child):
            setattr(parent, name, PackedLinear(child.weight, child.bias))
        elif not has_hooks(child) and (norm := fast_rms_norm(child)) is not None:
            setattr(parent, name, norm)


def _can_pack(layer: nn.Linear) -> bool:
    return layer.weight.device.type == "cpu" and layer.weight.dtype in _PACKABLE
