"""Replaces parts of a loaded model by faster ones that compute the same.

A part is replaced where its structure shows what it does (exactly `nn.Linear`) or where it was compared with its
replacement on random input (RMS norms); whatever does not match stays as it is.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from .fused_layer import fuse_layers
from .linear import PackedLinear, fuse, has_hooks, is_plain

_FUSED_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of sibling layers that get the same input in every decoder of transformers that has them."""

_PACKABLE = (torch.bfloat16, torch.float32)


def speed_up(model: nn.Module, progress: Callable[[float], None]) -> None:
    """Fuse, pack and replace in place what can be; `progress` gets the share done, 0 to 1.

    Encoders of embedding models have the same parts, so this serves both kinds of models.
    """
    if isinstance(model, PreTrainedModel):
        fuse_layers(model, _can_pack)
    parents = [module for module in model.modules() if next(module.children(), None) is not None]
    for done, parent in enumerate(parents):
        _fuse_siblings(parent)
        _replace_children(parent)
        progress((done + 1) / len(parents))


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, in float32: `x / sqrt(mean(x^2) + eps) * weight`."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        """`weight` is [n], of the model's dtype or wider."""
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._size = tuple(weight.shape)
        self._eps = eps
        self._wide_weight = weight.float()
        self._wide_eps = torch.tensor(eps, device=weight.device)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., n] to [..., n]."""
        if inputs.is_cuda:
            return functional.rms_norm(inputs.to(self.weight.dtype), self._size, self.weight, self._eps).to(
                inputs.dtype
            )
        # On the CPU rms_norm is put together from twice as many operations (21 us against 10 us for one row of 576).
        wide = inputs.float()  # [..., n]
        length = torch.linalg.vector_norm(wide, 2, -1, True)  # [..., 1]
        scale = torch.addcmul(self._wide_eps, length, length, value=1 / self._size[0]).rsqrt_()  # [..., 1]
        return (wide * scale).mul_(self._wide_weight).to(inputs.dtype)


def fast_rms_norm(module: nn.Module) -> RMSNorm | None:
    """The `RMSNorm` that computes what `module` does, None if it is no RMS norm or one of another formula."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, nn.Parameter):
        return None
    if weight.dim() != 1 or not isinstance(eps, float) or weight.is_meta:
        return None
    wide_weight = weight.detach().float()
    candidates = (
        RMSNorm(weight.detach(), eps),
        RMSNorm(1.0 + wide_weight, eps),  # Gemma's weights are centred at zero and added to one in float32
    )
    return next((norm for norm in candidates if _same_function(module, norm, weight)), None)


def _same_function(module: nn.Module, norm: RMSNorm, weight: torch.Tensor) -> bool:
    """Whether both agree in float32, on rows so small that eps decides, ordinary ones and large ones."""
    # Kernels of the two round differently by a few units in the last place, while another formula (weight centred
    # elsewhere, eps outside the root, mean subtracted) differs in the first digits of some row.
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, weight.shape[0], generator=generator) + 0.5
    rows *= torch.tensor([[1e-3], [1.0], [30.0]])
    inputs = rows.to(weight.device)
    with torch.no_grad():
        expected = copy.deepcopy(module).float()(inputs)
        actual = norm(inputs)
    return isinstance(expected, torch.Tensor) and torch.allclose(expected, actual, rtol=1e-5, atol=1e-6)


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
