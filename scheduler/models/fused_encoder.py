"""Replaces the layers of an encoder (BERT, RoBERTa, MPNet, DistilBERT and their like) by one native operation.

Embeddings before the layers and poolers and heads behind them stay the model's own. The layers run without padding: the
rows of all texts lie one behind the other. They are replaced where their parts have the usual names and, as the proof,
the model answers alike with both on random texts of different lengths.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from penstock.kernels.encoder import Activation, Affine, EncoderLayer, EncoderShape
from penstock.kernels.encoder_native import NativeEncoder

from .linear import is_plain

# n texts, L tokens of the longest, T tokens of all, E hidden size, H heads

_TOLERANCE = {torch.float32: 1e-4}  # relative error of what the layers add; other dtypes: rounding of bfloat16
_ROUNDED_TOLERANCE = 0.04
_TRIAL_LENGTHS = (23, 9, 14)


@dataclass(frozen=True, slots=True)
class _Names:
    """Paths of a layer's parts."""

    qkv: tuple[str, str, str]
    output: str
    attention_norm: str
    up: str
    act: str
    down: str
    output_norm: str


_FAMILIES = (
    _Names(
        qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
        output="attention.output.dense",
        attention_norm="attention.output.LayerNorm",
        up="intermediate.dense",
        act="intermediate.intermediate_act_fn",
        down="output.dense",
        output_norm="output.LayerNorm",
    ),
    _Names(
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        output="attention.attn.o",
        attention_norm="attention.LayerNorm",
        up="intermediate.dense",
        act="intermediate.intermediate_act_fn",
        down="output.dense",
        output_norm="output.LayerNorm",
    ),
    _Names(
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        output="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        act="ffn.activation",
        down="ffn.lin2",
        output_norm="output_layer_norm",
    ),
)

_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}


class FusedEncoder(nn.Module):
    """Takes the place of the module that holds the layers; `fuse_encoder` makes it."""

    def __init__(self, encode: NativeEncoder, position_bias: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        """`position_bias` takes hidden states [1, L, E] and gives what is added to scores, [1, H, L, L]."""
        super().__init__()
        self._encode = encode
        self._position_bias = position_bias
        self.output_type: Callable[..., Any] = tuple

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *others: object, **more: object
    ) -> Any:
        """[n, L, E] to the model's own kind of output; padding is on the right, and comes out as zeros."""
        num_texts, longest, size = hidden_states.shape
        bias = None
        if self._position_bias is not None:
            bias = self._position_bias(hidden_states[:1])[0].float().contiguous()  # [H, L, L]
        if attention_mask is None:
            packed = hidden_states.reshape(-1, size)  # [n L, E]
            states = self._encode(packed, [longest] * num_texts, bias).view_as(hidden_states)
        else:
            first_row = attention_mask[:, 0, 0]  # [n, L]: bool, or added to scores
            kept = first_row if first_row.dtype == torch.bool else first_row == 0
            states = torch.zeros_like(hidden_states)
            states[kept] = self._encode(hidden_states[kept], kept.sum(1).tolist(), bias)
        return self.output_type(last_hidden_state=states)


def fuse_encoder(model: PreTrainedModel) -> bool:
    """Replace the layers of `model` if it is an encoder that has a fused equal.

    Args:
        model: as loaded, its parts not yet replaced.

    Returns:
        Whether it was done.
    """
    config = model.config
    if getattr(config, "output_hidden_states", False) or getattr(config, "output_attentions", False):
        return False  # the layers' own results are wanted
    for parent in model.modules():
        for name, module in parent.named_children():
            layers = getattr(module, "layer", None)
            if isinstance(layers, nn.ModuleList) and len(layers) > 0:
                return _fuse(model, parent, name, module)
    return False


def _fuse(model: PreTrainedModel, parent: nn.Module, name: str, module: Any) -> bool:
    """Put a fused encoder in the place of `module`, the child `name` of `parent`, if both do the same."""
    fused = _build(module, model.config)
    if fused is None:
        return False
    seen: list[tuple[torch.Tensor, Any]] = []
    hook = module.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((args[0] if args else kwargs["hidden_states"], output)),
        with_kwargs=True,
    )
    kept, features = _trial(model)
    with torch.inference_mode():
        model(**features)
        hook.remove()
        if len(seen) != 1 or getattr(seen[0][1], "last_hidden_state", None) is None:
            return False
        inputs, output = seen[0]
        fused.output_type = type(output)
        catcher: list[Any] = []
        hook = fused.register_forward_hook(lambda module, args, output: catcher.append(output))
        setattr(parent, name, fused)
        model(**features)
        hook.remove()
    expected, actual = output.last_hidden_state[kept], catcher[0].last_hidden_state[kept]
    # Of what the layers add: the input is the same for both and would hide a difference.
    error = (actual - expected).float().norm() / (expected - inputs[kept]).float().norm()
    if error < _TOLERANCE.get(inputs.dtype, _ROUNDED_TOLERANCE):
        return True
    setattr(parent, name, module)
    return False


def _trial(model: PreTrainedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Random texts: which places of [n, L] are tokens, and the arguments of the model."""
    kept = torch.arange(max(_TRIAL_LENGTHS)) < torch.tensor(_TRIAL_LENGTHS)[:, None]  # [n, L]
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocab_size, kept.shape, generator=generator)
    return kept, {"input_ids": tokens, "attention_mask": kept.long()}


def _build(module: Any, config: Any) -> FusedEncoder | None:
    """The fused equal of the layers in `module` as far as their parts tell, None if there is none."""
    names = next((names for names in _FAMILIES if all(_fits(layer, names) for layer in module.layer)), None)
    if names is None:
        return None
    first = module.layer[0]
    activation, eps = _activation_of(_part(first, names.act)), _part(first, names.output_norm).eps
    num_heads = config.num_attention_heads
    head_dim = _part(first, names.qkv[0]).out_features // num_heads
    if activation is None or any(_eps_of(layer, names) != {eps} for layer in module.layer):
        return None
    layers = [_weights_of(layer, names) for layer in module.layer]
    if not NativeEncoder.can_run(layers):
        return None
    shape = EncoderShape(num_heads, head_dim, head_dim**-0.5, eps, activation)
    return FusedEncoder(NativeEncoder(layers, shape), getattr(module, "compute_position_bias", None))


def _fits(layer: nn.Module, names: _Names) -> bool:
    linears = [_part(layer, name) for name in (*names.qkv, names.output, names.up, names.down)]
    norms = [_part(layer, name) for name in (names.attention_norm, names.output_norm)]
    return (
        all(is_plain(linear) and linear.bias is not None for linear in linears)
        and all(type(norm) is nn.LayerNorm and norm.elementwise_affine and norm.bias is not None for norm in norms)
        and _part(layer, names.act) is not None
        and not hasattr(layer, "crossattention")
    )


def _part(layer: nn.Module, path: str) -> Any:
    """The part of a layer at this path, None if there is none."""
    part: Any = layer
    for name in path.split("."):
        part = getattr(part, name, None)
    return part


def _eps_of(layer: nn.Module, names: _Names) -> set[float]:
    return {_part(layer, name).eps for name in (names.attention_norm, names.output_norm)}


def _activation_of(act: Callable[[torch.Tensor], torch.Tensor]) -> Activation | None:
    """The activation that computes what `act` does."""
    x = torch.linspace(-6, 6, 1001)
    return next((name for name, known in _ACTIVATIONS.items() if torch.allclose(act(x), known(x), atol=1e-6)), None)


def _weights_of(layer: nn.Module, names: _Names) -> EncoderLayer:
    def affine(path: str) -> Affine:
        part = _part(layer, path)
        return part.weight.detach(), part.bias.detach()

    qkv = [affine(path) for path in names.qkv]
    return EncoderLayer(
        qkv=(torch.cat([weight for weight, _ in qkv]), torch.cat([bias for _, bias in qkv])),
        output=affine(names.output),
        attention_norm=affine(names.attention_norm),
        up=affine(names.up),
        down=affine(names.down),
        output_norm=affine(names.output_norm),
    )
