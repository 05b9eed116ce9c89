"""Linear layers for inference: their weights packed once, and fused where several share one input."""

from typing import TypeGuard

import torch
from torch import nn

from penstock.kernels.linear import linear, pack_weight


class PackedLinear(nn.Module):
    """`nn.Linear` on the CPU with its weight packed, for bfloat16 and float32.

    `weight` has the layer's dtype, device and shape, which some models ask for, and NaN for elements.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Pack `weight` [out_features, in_features]; the caller drops the original to free its memory."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.has_bias = bias is not None
        # Neither is a parameter or a buffer: what is packed can be neither saved nor moved.
        self.packed = pack_weight(weight, bias)
        self.weight = torch.full((1, 1), torch.nan, dtype=weight.dtype).expand(weight.shape)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        if inputs.dim() == 2:
            return linear(inputs, self.packed)
        rows = inputs.reshape(-1, self.in_features)  # [T, K]
        return linear(rows, self.packed).view(*inputs.shape[:-1], self.out_features)

    def forward_add(self, inputs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`forward(inputs) + other` as one operation; `inputs` is [T, in_features], `other` [T, out_features]."""
        return linear(inputs, self.packed, other)

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, bias={self.has_bias}"


class FusedLinear(nn.Module):
    """Several linear layers of one input as one product.

    The model still calls each layer: the first call computes the product for all, and every later call with the very
    same tensor takes its slice. A slice is handed out once, so a tensor that was changed in place meanwhile and comes
    again is computed again; calls in any order and with any inputs give what the separate layers give.
    """

    def __init__(self, linear: nn.Module, sizes: list[int]) -> None:
        """`linear` computes the concatenated outputs, whose sizes are `sizes`."""
        super().__init__()
        self.linear = linear
        self._sizes = sizes
        self._input: torch.Tensor | None = None
        self._slices: list[torch.Tensor | None] = []

    def slice_of(self, index: int, inputs: torch.Tensor) -> torch.Tensor:
        """Output of layer `index`, [..., sizes[index]]: a strided view of the product."""
        output = self._slices[index] if self._input is inputs else None
        if output is None:
            self._input = inputs
            self._slices = list(self.linear(inputs).split(self._sizes, dim=-1))
            output = self._slices[index]
            assert output is not None
        self._slices[index] = None
        if not any(part is not None for part in self._slices):
            self._input = None  # lets the activations go before the next layer needs memory
        return output


class FusedPart(nn.Module):
    """Stands where one of the fused layers stood."""

    def __init__(self, fused: FusedLinear, index: int, original: nn.Linear) -> None:
        super().__init__()
        self._fused = fused
        self._index = index
        self.in_features = original.in_features
        self.out_features = original.out_features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        return self._fused.slice_of(self._index, inputs)


def is_plain(layer: object) -> TypeGuard[nn.Linear]:
    """Whether this is an ordinary linear layer, with neither a quantised weight nor hooks."""
    return type(layer) is nn.Linear and type(layer.weight.data) is torch.Tensor and not has_hooks(layer)


def has_hooks(module: nn.Module) -> bool:
    """Hooks (quantisers, offloading) change what a call does; such a module stays."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def concatenate(layers: list[nn.Linear], *, packed: bool) -> nn.Module:
    """One linear layer with the outputs of all `layers`, which have equal `in_features` and all or none a bias."""
    first = layers[0]
    if packed:
        weight = torch.cat([layer.weight.detach() for layer in layers]) if len(layers) > 1 else first.weight
        return PackedLinear(weight, _concatenated_bias(layers))
    if len(layers) == 1:
        return first
    weight = torch.cat([layer.weight.detach() for layer in layers])
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=first.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if (bias := _concatenated_bias(layers)) is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def fuse(layers: list[nn.Linear], *, packed: bool) -> list[FusedPart]:
    """One `FusedPart` for each of `layers`, which have equal `in_features` and all or none a bias."""
    fused = FusedLinear(concatenate(layers, packed=packed), [layer.out_features for layer in layers])
    return [FusedPart(fused, index, layer) for index, layer in enumerate(layers)]


def _concatenated_bias(layers: list[nn.Linear]) -> torch.Tensor | None:
    return torch.cat([layer.bias.detach() for layer in layers]) if layers[0].bias is not None else None
