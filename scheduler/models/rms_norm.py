"""RMS norms of a model as calls of the kernel, where the model's own module computes the same."""

import copy

import torch
from torch import nn

from penstock.kernels.rmsnorm import rms_norm


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, in float32: `x / sqrt(mean(x^2) + eps) * weight`."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        """`weight` is [n], of the model's dtype or wider."""
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., n] to [..., n]."""
        if inputs.dim() == 2:
            return rms_norm(inputs, self.weight, self.eps)
        return rms_norm(inputs.reshape(-1, inputs.shape[-1]), self.weight, self.eps).view(inputs.shape)


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
