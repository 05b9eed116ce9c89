"""One pre-norm decoder layer in half as many operations as the module it replaces.

At few rows a step is not bound by its matrix products but by the dozens of small operations around them. The layer of
Llama, Mistral, Qwen 2 and 3 and their like is: norm, attention with rotary positions, add, norm, gated MLP, add. Here
query, key and value are one product, and so are gate and up; the rotation treats queries and keys as one tensor; the
additions ride on the products before them.

A layer is replaced where its parts have the usual names and, as the proof, both layers answer alike on random tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from penstock.kernels.decoder_layers import DecoderLayer
from penstock.kernels.rope import rope_cache_write
from penstock.kernels.silu_mul import silu_mul

from ..context import LayerCall, Trial, current_context, forward_context
from ..layer_cache import LayerCache
from .fp8_linear import add_norm_linear, norm_linear, silu_mul_linear
from .linear import PackedLinear, concatenate, is_plain
from .rms_norm import RMSNorm, fast_rms_norm

# T packed tokens, H query heads, K kv heads, D head dim, E hidden size, F feed-forward size

_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_TOLERANCE = {torch.float32: 1e-4}  # relative error of what the layer adds; other dtypes: rounding of bfloat16
_ROUNDED_TOLERANCE = 0.04


class LayerNorms(NamedTuple):
    """The norms of a layer; those of query and key heads are either both there or both not."""

    input: RMSNorm
    post_attention: RMSNorm
    query: RMSNorm | None
    key: RMSNorm | None


class FusedDecoderLayer(nn.Module):
    """Takes the place of a decoder layer; `fuse_layers` makes it."""

    def __init__(self, layer: Any, call: LayerCall, norms: LayerNorms, *, packed: bool) -> None:
        """`layer` has the parts named above; `call` is what its attention asked for in a trial."""
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self._call = call
        self.layer_idx = call.layer_idx
        projections = [getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")]
        self._num_heads, self._num_kv_heads, _ = (linear.out_features // attention.head_dim for linear in projections)
        # [num heads of all three, D]
        self._heads_shape = (self._num_heads + 2 * self._num_kv_heads, attention.head_dim)
        self.qkv_proj = concatenate(projections, packed=packed)
        self.o_proj = concatenate([attention.o_proj], packed=packed)
        self.gate_up_proj = concatenate([mlp.gate_proj, mlp.up_proj], packed=packed)
        self.down_proj = concatenate([mlp.down_proj], packed=packed)
        self.act_fn: nn.Module = mlp.act_fn
        self._is_silu = isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)
        self.input_layernorm = norms.input
        self.post_attention_layernorm = norms.post_attention
        self._q_norm, self._k_norm = norms.query, norms.key
        if hasattr(layer, "attention_type"):  # by which some models choose a mask
            self.attention_type = layer.attention_type

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **others: object,
    ) -> torch.Tensor:
        """[1, T, E] to [1, T, E]; `position_embeddings` are cosines and sines, [1, T, D] each."""
        assert position_embeddings is not None and attention_mask is None
        states, call = hidden_states[0], self._call  # [T, E]
        num_tokens = states.shape[0]
        cos, sin = position_embeddings
        projected = norm_linear(self.input_layernorm, self.qkv_proj, states)  # [T, (H + 2K) * D]
        attended = current_context().attend_stored(
            call.layer_idx,
            call.shape,
            projected.view(num_tokens, *self._heads_shape),
            partial(self._store, cos[0], sin[0]),
            scale=call.scale,
            sliding_window=call.sliding_window,
            softcap=call.softcap,
        )  # [T, H, D]
        attended = attended.view(num_tokens, -1)
        if isinstance(self.o_proj, PackedLinear) and isinstance(self.down_proj, PackedLinear):
            states = self.o_proj.forward_add(attended, states)
            gate_up = self.gate_up_proj(self.post_attention_layernorm(states))  # [T, 2F]
            return self.down_proj.forward_add(self._gate(gate_up), states).unsqueeze(0)
        gate_up, states = add_norm_linear(
            self.o_proj(attended), states, self.post_attention_layernorm, self.gate_up_proj
        )  # [T, 2F], [T, E]
        down = silu_mul_linear(gate_up, self.down_proj) if self._is_silu else self.down_proj(self._gate(gate_up))
        return states.add_(down).unsqueeze(0)

    def describe(self) -> DecoderLayer | None:
        """The layer for `kernels.decoder_layers`; None if it is none of Llama's kind, packed for the CPU."""
        linears = (self.qkv_proj, self.o_proj, self.gate_up_proj, self.down_proj)
        packed = [linear.packed for linear in linears if isinstance(linear, PackedLinear)]
        if len(packed) < len(linears) or not self._is_silu:
            return None
        qkv, output, gate_up, down = packed
        query, key = self._q_norm, self._k_norm
        return DecoderLayer(
            input_norm=self.input_layernorm.weight,
            input_eps=self.input_layernorm.eps,
            qkv=qkv,
            num_heads=self._num_heads,
            num_kv_heads=self._num_kv_heads,
            q_norm=None if query is None else query.weight,
            k_norm=None if key is None else key.weight,
            head_eps=0.0 if query is None else query.eps,
            scale=self._call.scale,
            sliding_window=self._call.sliding_window,
            softcap=self._call.softcap,
            output=output,
            post_attention_norm=self.post_attention_layernorm.weight,
            post_attention_eps=self.post_attention_layernorm.eps,
            gate_up=gate_up,
            down=down,
        )

    def _store(
        self,
        cos: torch.Tensor,
        sin: torch.Tensor,
        heads: torch.Tensor,
        cache: LayerCache,
        slot_mapping: torch.Tensor,
    ) -> torch.Tensor:
        """`rope_cache_write` of this layer."""
        query, key = self._q_norm, self._k_norm
        return rope_cache_write(
            heads,
            cos,
            sin,
            cache.key,
            cache.value,
            slot_mapping,
            self._num_heads,
            self._num_kv_heads,
            None if query is None else query.weight,
            None if key is None else key.weight,
            0.0 if query is None else query.eps,
            key_scale=cache.key_scale,
            value_scale=cache.value_scale,
        )

    def _gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Activation of the gate times up, [T, 2F] to [T, F]."""
        if self._is_silu:
            return silu_mul(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)  # [T, F] each
        product: torch.Tensor = self.act_fn(gate).mul_(up)
        return product


def fuse_layers(model: PreTrainedModel, can_pack: Callable[[nn.Linear], bool]) -> None:
    """Replace the decoder layers of `model` that have a fused equal; the others stay.

    Args:
        model: as loaded, its parts not yet replaced.
        can_pack: whether a linear layer may be packed for the CPU.
    """
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(map(_has_usual_parts, layers)):
        return
    for index, arguments in enumerate(_observe(model, layers)):
        if arguments is not None:
            layer: Any = layers[index]
            fused = _fuse_layer(layer, *arguments, packed=can_pack(layer.self_attn.q_proj))
            layers[index] = layer if fused is None else fused


def _observe(model: PreTrainedModel, layers: nn.ModuleList) -> list[tuple[torch.Tensor, dict[str, Any]] | None]:
    """Input and keyword arguments that each layer gets for a few tokens; None if it gets anything else."""
    observed: list[tuple[torch.Tensor, dict[str, Any]] | None] = []

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cos, _ = kwargs.get("position_embeddings") or (None, None)
        # A rotation of a part of each head, and any layer that is called otherwise, are left to the original.
        usual = len(args) == 1 and cos is not None and cos.shape[-1] == cast(Any, layer).self_attn.head_dim
        observed.append((args[0].clone(), kwargs) if usual else None)

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    positions = torch.tensor([[0, 1, 2, 5, 9, 14]], device=model.device)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, positions.shape, generator=generator).to(model.device)
    with torch.inference_mode(), forward_context(Trial()):
        model.base_model(input_ids=tokens, position_ids=positions, use_cache=False)
    for hook in hooks:
        hook.remove()
    return observed


def _fuse_layer(
    layer: Any, inputs: torch.Tensor, arguments: dict[str, Any], *, packed: bool
) -> FusedDecoderLayer | None:
    """The fused layer that answers like `layer` when called with these arguments, None if there is none."""
    trial, norms = Trial(), _norms(layer)
    with torch.inference_mode(), forward_context(trial):
        expected = layer(inputs, **arguments)
        if len(trial.calls) != 1 or trial.calls[0].has_sinks or not isinstance(expected, torch.Tensor):
            return None
        if norms is None or trial.calls[0].shape.value_head_dim != layer.self_attn.head_dim:
            return None
        fused = FusedDecoderLayer(layer, trial.calls[0], norms, packed=packed)
        actual = fused(inputs, **arguments)
    # Of what the layers add: the residual itself is the same in both and would hide a difference.
    added = (expected - inputs).float()
    error = (actual - expected).float().norm() / added.norm()
    return fused if error < _TOLERANCE.get(inputs.dtype, _ROUNDED_TOLERANCE) else None


def _norms(layer: Any) -> LayerNorms | None:
    """The norms of `layer`; None if one of them is no RMS norm or those of its heads have different eps."""
    attention = layer.self_attn
    modules = [layer.input_layernorm, layer.post_attention_layernorm]
    modules += [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    norms = [norm for module in modules if (norm := fast_rms_norm(module)) is not None]
    if len(norms) < len(modules) or len({norm.eps for norm in norms[2:]}) > 1:
        return None
    query, key = norms[2:] or (None, None)
    return LayerNorms(norms[0], norms[1], query, key)


def _has_usual_parts(layer: Any) -> bool:
    if {name for name, _ in layer.named_children()} != _PARTS:
        return False
    attention, mlp = dict(layer.self_attn.named_children()), dict(layer.mlp.named_children())
    if attention.keys() - _HEAD_NORMS != _ATTENTION_PARTS or len(attention.keys() & _HEAD_NORMS) == 1:
        return False
    if mlp.keys() != _MLP_PARTS or not hasattr(layer.self_attn, "head_dim"):
        return False
    head_dim = layer.self_attn.head_dim
    norms = [attention[name] for name in _HEAD_NORMS if name in attention]
    linears = [attention[name] for name in _ATTENTION_PARTS] + [mlp[name] for name in _MLP_PARTS - {"act_fn"}]
    together = [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")]
    return (
        all(is_plain(linear) for linear in linears)
        and all(len({(attention | mlp)[name].bias is None for name in names}) == 1 for names in together)
        and all(norm.weight.shape == (head_dim,) for norm in norms)
    )
