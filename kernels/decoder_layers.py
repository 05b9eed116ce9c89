"""All layers of a decoder, from the embedded tokens to the states that its last norm gets, as one operation.

A layer is that of Llama and its like: norm, attention with rotary positions, add, norm, gated MLP, add.

Legend: T packed tokens, E hidden size, F feed-forward size, H query heads, K kv heads, D head dim, B blocks, S block
size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .attention import cached_attention
from .attention_batch import AttentionBatch
from .linear import PackedWeight, linear
from .rmsnorm import rms_norm
from .rope import rope_cache_write
from .silu_mul import silu_mul


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Weights and constants of one layer."""

    input_norm: torch.Tensor  # [E]
    input_eps: float
    qkv: PackedWeight  # E to (H + 2K) * D
    num_heads: int
    num_kv_heads: int
    q_norm: torch.Tensor | None  # [D], of the RMS norm of each query head; None: there is none
    k_norm: torch.Tensor | None  # [D], of each key head; given if and only if `q_norm` is
    head_eps: float
    scale: float
    sliding_window: int | None
    softcap: float | None
    output: PackedWeight  # H * D to E
    post_attention_norm: torch.Tensor  # [E]
    post_attention_eps: float
    gate_up: PackedWeight  # E to 2F
    down: PackedWeight  # F to E

    @property
    def head_dim(self) -> int:
        """D."""
        return self.output.in_features // self.num_heads


def decoder_layers_reference(
    states: torch.Tensor,
    layers: Sequence[DecoderLayer],
    caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    cos: torch.Tensor,
    sin: torch.Tensor,
    batch: AttentionBatch,
) -> torch.Tensor:
    """The layers one operation after the other.

    Args:
        states: [T, E].
        layers: in order.
        caches: keys and values of each, as `paged_attention` takes them; the step's own are stored there.
        cos: [T, D] cosines of each token's angles.
        sin: [T, D] sines.
        batch: the step's rows.

    Returns:
        [T, E].
    """
    num_tokens = states.shape[0]
    for layer, (key_cache, value_cache) in zip(layers, caches, strict=True):
        qkv = linear(rms_norm(states, layer.input_norm, layer.input_eps), layer.qkv)
        query = rope_cache_write(
            qkv.view(num_tokens, -1, layer.head_dim),
            cos,
            sin,
            key_cache,
            value_cache,
            batch.slot_mapping,
            layer.num_heads,
            layer.num_kv_heads,
            layer.q_norm,
            layer.k_norm,
            layer.head_eps,
        )
        attended = cached_attention(
            query,
            key_cache,
            value_cache,
            batch,
            scale=layer.scale,
            sliding_window=layer.sliding_window,
            softcap=layer.softcap,
        )
        states = linear(attended.view(num_tokens, -1), layer.output, states)
        gate_up = linear(rms_norm(states, layer.post_attention_norm, layer.post_attention_eps), layer.gate_up)
        states = linear(silu_mul(gate_up), layer.down, states)
    return states
