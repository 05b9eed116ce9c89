"""The decoder around fused layers, without what a served model does not need of the module that it replaces.

Between embedding and head, the base model of transformers prepares masks and caches, and calls each layer through
several wrappers: half a millisecond a step for a model of thirty layers, whatever the number of tokens.
"""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from penstock.kernels.decoder_layers_native import NativeDecoder, can_run

from ..context import PagedContext, Trial, current_context, forward_context
from .fused_layer import FusedDecoderLayer
from .rms_norm import RMSNorm, fast_rms_norm

# T packed tokens, E hidden size, D head dim

_PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}
_REFUSED = ("attention_mask", "past_key_values", "inputs_embeds")
_TOLERANCE = {torch.float32: 1e-4}  # relative error; other dtypes: rounding of bfloat16
_ROUNDED_TOLERANCE = 0.01


class FusedDecoder(nn.Module):
    """Takes the place of the base model of a causal language model; `fuse_decoder` makes it."""

    def __init__(self, decoder: Any, norm: RMSNorm) -> None:
        """`decoder` has the parts named above; `norm` computes what its own does."""
        super().__init__()
        self.config = decoder.config
        self.embed_tokens: nn.Module = decoder.embed_tokens
        self.layers: nn.ModuleList = decoder.layers
        self.rotary_emb: nn.Module = decoder.rotary_emb
        self.norm = norm
        self._layer_indices = [layer.layer_idx for layer in decoder.layers]
        self._native: NativeDecoder | None = None
        self.describe_layers()

    def describe_layers(self) -> None:
        """Take the weights of the layers as they are now; again whenever they were exchanged."""
        layers = [cast(FusedDecoderLayer, layer).describe() for layer in self.layers]
        described = [layer for layer in layers if layer is not None]
        self._native = NativeDecoder(described) if len(described) == len(layers) and can_run(described) else None

    @property
    def is_native(self) -> bool:
        """Whether the layers run as one native call."""
        return self._native is not None

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **others: Any) -> BaseModelOutputWithPast:
        """The hidden states [1, T, E] of packed tokens; both arguments are [1, T] int64."""
        refused = [name for name in _REFUSED if others.get(name) is not None]
        if refused:
            raise ValueError(f"a served model gets token ids and positions, and no {' or '.join(refused)}")
        states = self.embed_tokens(input_ids)  # [1, T, E]
        cos, sin = self.rotary_emb(states, position_ids)  # [1, T, D] each
        return BaseModelOutputWithPast(last_hidden_state=self.norm(self._run_layers(states, cos, sin)))

    def _run_layers(self, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """[1, T, E] to [1, T, E], in one native call for a step over a cache that it can use."""
        context = current_context()
        if self._native is not None and isinstance(context, PagedContext):
            caches = [(cache.key, cache.value) for cache in map(context.caches.__getitem__, self._layer_indices)]
            if self._native.use_caches(caches) and cos.dtype == states.dtype:
                context.layers_run += self._layer_indices
                return self._native.run(states[0], cos[0].contiguous(), sin[0].contiguous(), context.batch).unsqueeze(0)
        for layer in self.layers:
            states = layer.forward(states, position_embeddings=(cos, sin))
        return states


def fuse_decoder(model: PreTrainedModel) -> None:
    """Replace the base model of `model` if all its layers are fused and the fused one answers alike."""
    decoder: Any = model.base_model
    if decoder is model or {name for name, _ in decoder.named_children()} != _PARTS:
        return
    norm = fast_rms_norm(decoder.norm)
    if norm is None or not all(isinstance(layer, FusedDecoderLayer) for layer in decoder.layers):
        return
    fused = FusedDecoder(decoder, norm)
    tokens = torch.arange(6, device=model.device).unsqueeze(0) % model.config.vocab_size
    arguments = {"input_ids": tokens, "position_ids": tokens + 3, "use_cache": False}
    with torch.inference_mode(), forward_context(Trial()):
        expected = decoder(**arguments).last_hidden_state.float()
        actual = fused(**arguments).last_hidden_state.float()
    if (actual - expected).norm() < _TOLERANCE.get(model.dtype, _ROUNDED_TOLERANCE) * expected.norm():
        setattr(model, model.base_model_prefix, fused)
