"""Linear layers of float8 weights, and the operations before them that hand their output on in float8."""

import torch
from torch import nn

from penstock.kernels.linear_fp8 import linear_fp8, quantize_weight_fp8
from penstock.kernels.quantize_fp8 import add_rms_norm_fp8, quantize_fp8, rms_norm_fp8, silu_mul_fp8
from penstock.kernels.rmsnorm import add_rms_norm
from penstock.kernels.silu_mul import silu_mul

from .rms_norm import RMSNorm

# T packed tokens, K inputs, N outputs, E hidden size, F feed-forward size


class Fp8Linear(nn.Module):
    """`nn.Linear` with a scale for each output of its weight, and one for each token of its input.

    `weight` has the layer's dtype, device and shape, which some models ask for, and NaN for elements.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Round `weight` [out_features, in_features]; the caller drops the original to free its memory."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # Neither is a parameter: what is rounded is not to be converted to another dtype with the model.
        self.rounded = quantize_weight_fp8(weight)
        self.bias = bias
        self.weight = torch.full((1, 1), torch.nan, dtype=weight.dtype, device=weight.device).expand(weight.shape)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        rows = inputs.reshape(-1, self.in_features)  # [T, K]
        return self.multiply(*quantize_fp8(rows)).view(*inputs.shape[:-1], self.out_features)

    def multiply(self, rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """[T, N] of the rows [T, K] and scales [T, 1] of `quantize_fp8`."""
        return linear_fp8(rows, scale, self.rounded, self.bias, self.weight.dtype)

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def norm_linear(norm: RMSNorm, linear: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """`linear(norm(states))` of [T, E]."""
    if isinstance(linear, Fp8Linear):
        return linear.multiply(*rms_norm_fp8(states, norm.weight, norm.eps))
    output: torch.Tensor = linear(norm(states))
    return output


def add_norm_linear(
    added: torch.Tensor, states: torch.Tensor, norm: RMSNorm, linear: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """`linear(norm(added + states))` and that sum, [T, E]."""
    if isinstance(linear, Fp8Linear):
        rows, scale, total = add_rms_norm_fp8(added, states, norm.weight, norm.eps)
        return linear.multiply(rows, scale), total
    normed, total = add_rms_norm(added, states, norm.weight, norm.eps)
    return linear(normed), total


def silu_mul_linear(gate_up: torch.Tensor, linear: nn.Module) -> torch.Tensor:
    """`linear(silu(gate) * up)` of both gates and what they multiply, [T, 2F]."""
    if isinstance(linear, Fp8Linear):
        return linear.multiply(*silu_mul_fp8(gate_up))
    output: torch.Tensor = linear(silu_mul(gate_up))
    return output
