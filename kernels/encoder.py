"""The layers of a post-norm transformer encoder (BERT and its like) over texts of any lengths.

A layer is `x = norm(x + attention(x)); x = norm(x + feed_forward(x))` (arXiv 1810.04805). Texts lie packed one behind
the other, without padding, and each attends to all of itself. `Encoder` is the native implementation for the CPU,
`encode_reference` the same in plain torch. Legend: T packed tokens, E hidden size, H heads, D head dim, F inner size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch.nn import functional

Affine: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Weight [outputs, inputs] and bias [outputs] of a product, or weight and bias [E] of a norm."""
Activation: TypeAlias = Literal["gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """The weights of one layer, all of one dtype."""

    qkv: Affine
    """Query, key and value as one product: [3 H D, E]."""
    output: Affine
    """[E, H D]."""
    attention_norm: Affine
    up: Affine
    """[F, E]."""
    down: Affine
    """[E, F]."""
    output_norm: Affine


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What all layers have in common."""

    num_heads: int
    head_dim: int
    scale: float
    """Factor of the scores of attention."""
    eps: float
    """Of the norms, added to the variance."""
    activation: Activation


def encode_reference(
    states: torch.Tensor,
    lengths: Sequence[int],
    layers: Sequence[EncoderLayer],
    shape: EncoderShape,
    position_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take packed texts through all layers.

    Args:
        states: [T, E].
        lengths: tokens of each text; their sum is T.
        layers: of the dtype of `states`.
        shape: of all layers.
        position_bias: [H, S, S], added to the scores of tokens by their positions; S is at least the longest length.

    Returns:
        [T, E].
    """
    for layer in layers:
        qkv = functional.linear(states, *layer.qkv)  # [T, 3 H D]
        texts = torch.split(qkv, list(lengths))
        attended = torch.cat([_attend(text, shape, position_bias) for text in texts])  # [T, H D]
        states = _norm(states + functional.linear(attended, *layer.output), layer.attention_norm, shape.eps)
        inner = _activate(functional.linear(states, *layer.up), shape.activation)  # [T, F]
        states = _norm(states + functional.linear(inner, *layer.down), layer.output_norm, shape.eps)
    return states


def _attend(qkv: torch.Tensor, shape: EncoderShape, position_bias: torch.Tensor | None) -> torch.Tensor:
    """One text, [L, 3 H D] to [L, H D]."""
    length = qkv.shape[0]
    query, key, value = qkv.view(length, 3, shape.num_heads, shape.head_dim).permute(1, 2, 0, 3)  # [H, L, D] each
    scores = query @ key.transpose(1, 2) * shape.scale  # [H, L, L]
    if position_bias is not None:
        scores = scores + position_bias[:, :length, :length]
    means: torch.Tensor = scores.softmax(-1) @ value  # [H, L, D]
    return means.transpose(0, 1).reshape(length, -1)


def _norm(states: torch.Tensor, norm: Affine, eps: float) -> torch.Tensor:
    weight, bias = norm
    return functional.layer_norm(states, weight.shape, weight, bias, eps)


def _activate(inner: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "relu":
        return inner.relu()
    return functional.gelu(inner, approximate="tanh" if activation == "gelu_tanh" else "none")
