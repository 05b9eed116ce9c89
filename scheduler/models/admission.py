"""Decides which transformers models may be served in packed, paged batches, before their weights are read.

In such a batch all requests lie one after the other in one sequence of length T. A model is safe there if tokens meet
only in attention that goes through the paged function, and if nothing in it depends on the batch's longest position.
"""

import inspect
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig

from ..errors import ModelLoadError, UnsupportedModelError

PROVEN = frozenset(
    {
        "cohere2",
        "deepseek_v3",
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "gpt2",
        "gpt_neox",
        "gpt_oss",
        "granite",
        "llama",
        "ministral",
        "mistral",
        "mixtral",
        "olmo2",
        "olmo3",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "starcoder2",
    }
)
"""Model types whose packed, paged logits are compared with separate runs by our tests; others are compared at load."""

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})

_REFUSED = {
    "llama4_text": "its chunked attention lives in a mask, and its attention temperature counts packed positions",
    "qwen3_next": "its linear-attention layers carry one state across all requests of a batch",
}
"""Model types known to be wrong although they may call themselves compatible."""

_POSITION_DEPENDENT_ROPE = ("dynamic", "longrope")


def check_config(config: PreTrainedConfig, max_model_len: int, *, trust_remote_code: bool) -> None:
    """Refuse a model whose configuration shows that it cannot be served.

    Args:
        config: of the model folder.
        max_model_len: longest sequence that will be run.
        trust_remote_code: whether the folder's own code may be imported to look at the model class.

    Raises:
        UnsupportedModelError: names the architecture and the reason.
    """
    if config.model_type in _REFUSED:
        raise _refusal(config, _REFUSED[config.model_type])
    if config.is_encoder_decoder:
        raise _refusal(config, "it is an encoder-decoder model; decoders alone are served")
    if config.get_text_config() is not config:
        raise _refusal(config, "it takes images or audio besides text; text-only folders of such models are served")
    _check_layers(config)
    _check_model_class(config, _model_class(config, trust_remote_code))
    _check_rope(config, max_model_len)


def resolve_max_model_len(config: PreTrainedConfig, wanted: int, name: str) -> int:
    """Longest sequence of the model: `wanted`, or if that is 0 what its configuration allows.

    Raises:
        ModelLoadError: more is wanted than the model has positions for, or neither side names a number.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        if wanted:
            return wanted
        raise ModelLoadError(f"the config of {name} names no longest sequence: give max_model_len")
    if wanted > limit:
        raise ModelLoadError(
            f"max_model_len {wanted} of {name} exceeds the {limit} positions of its config: give at most {limit}"
        )
    return wanted or int(limit)


def _check_layers(config: PreTrainedConfig) -> None:
    layer_types = set(getattr(config, "layer_types", None) or ())
    if strange := layer_types - _LAYER_TYPES:
        raise _refusal(config, f"it has {', '.join(sorted(strange))} layers; full and sliding attention are served")
    if getattr(config, "use_bidirectional_attention", None):
        raise _refusal(config, "its tokens attend to later ones, which a paged cache of the past cannot give")


def _check_model_class(config: PreTrainedConfig, model_class: Any) -> None:
    if getattr(model_class, "_is_stateful", False):
        raise _refusal(config, "its layers carry a recurrent state, which would run across the requests of a batch")
    if not getattr(model_class, "_supports_attention_backend", False):
        raise _refusal(config, "its attention cannot be exchanged for the paged one (no attention backend support)")
    if "logits_to_keep" not in inspect.signature(model_class.forward).parameters:
        raise _refusal(config, "it computes logits for every position (no logits_to_keep)")


def _check_rope(config: PreTrainedConfig, max_model_len: int) -> None:
    """Rotary frequencies that change once any sequence grows beyond the original length couple all requests."""
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    per_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    for rope in per_layer_type or [parameters]:
        kind = rope.get("rope_type", "default")
        if kind not in _POSITION_DEPENDENT_ROPE:
            continue
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        if max_model_len > original:
            raise _refusal(
                config,
                f"its {kind} rotary embedding changes for all requests when one grows beyond {original} tokens, "
                f"and max_model_len is {max_model_len}: give max_model_len of at most {original}",
            )


def _model_class(config: PreTrainedConfig, trust_remote_code: bool) -> Any:
    if type(config) in AutoModelForCausalLM._model_mapping:
        model_class = AutoModelForCausalLM._model_mapping[type(config)]
        return model_class[0] if isinstance(model_class, tuple) else model_class
    auto_map = getattr(config, "auto_map", None) or {}
    if trust_remote_code and "AutoModelForCausalLM" in auto_map:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module(auto_map["AutoModelForCausalLM"], config.name_or_path)
    raise _refusal(config, "it has no causal language model in transformers")


def _refusal(config: PreTrainedConfig, reason: str) -> UnsupportedModelError:
    architecture = (config.architectures or [config.model_type])[0]
    return UnsupportedModelError(f"{architecture} ({config.model_type}) cannot be served: {reason}")
