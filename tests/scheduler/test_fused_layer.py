"""Which decoder layers are fused, and that the fused ones answer like the original."""

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, VOCAB_SIZE, random_model, tiny_config
from transformers import PreTrainedModel

from penstock.scheduler.context import Trial, forward_context
from penstock.scheduler.models.attention import ATTENTION_NAME, register
from penstock.scheduler.models.fused_layer import FusedDecoderLayer, fuse_layers


def make_model(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    register()
    fields = {**FAMILIES.get(family, {"model_type": family}), **changes}
    config = tiny_config(fields.pop("model_type"), **fields)
    return random_model(config, seed=0, attn_implementation=ATTENTION_NAME).to(dtype).eval().requires_grad_(False)


def logits(model: PreTrainedModel) -> torch.Tensor:
    tokens = torch.randint(VOCAB_SIZE, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), forward_context(Trial()):
        return model(input_ids=tokens, position_ids=torch.arange(30)[None], use_cache=False).logits.float()


def num_fused(model: PreTrainedModel) -> int:
    return sum(isinstance(module, FusedDecoderLayer) for module in model.modules())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("llama", {"hidden_act": "gelu"}),
    ],
)
def test_a_fused_model_answers_like_the_original(family: str, changes: dict[str, Any], packed: bool) -> None:
    model = make_model(family, **changes)
    expected = logits(model)
    fuse_layers(model, lambda linear: packed)
    assert num_fused(model) == len(model.base_model.layers)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_fused_and_stays_within_rounding() -> None:
    exact = logits(make_model("llama"))
    model = make_model("llama", torch.bfloat16)
    error_before = (logits(model) - exact).std()
    fuse_layers(model, lambda linear: True)
    assert num_fused(model) == 3
    assert (logits(model) - exact).std() < 1.5 * error_before


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("granite", {"residual_multiplier": 0.5}),  # the same parts, another formula
        ("gemma2", {}),
        ("phi3", {}),
        ("gpt2", {}),
        ("qwen3_moe", {}),
        ("gpt_oss", {}),
    ],
)
def test_other_layers_stay(family: str, changes: dict[str, Any]) -> None:
    model = make_model(family, **changes)
    expected = logits(model)
    fuse_layers(model, lambda linear: True)
    assert num_fused(model) == 0
    assert torch.equal(logits(model), expected)


def test_layers_without_positions_are_told_apart() -> None:
    """SmolLM3 leaves the rotation out in some layers; those get embeddings that they do not use."""
    model = make_model("smollm3", no_rope_layers=[1, 0, 1])
    expected = logits(model)
    fuse_layers(model, lambda linear: True)
    fused = [isinstance(layer, FusedDecoderLayer) for layer in model.base_model.layers]
    assert fused == [True, False, True]
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_a_hooked_layer_stays() -> None:
    model = make_model("llama")
    model.base_model.layers[1].mlp.up_proj.register_forward_hook(lambda module, args, output: output * 2)
    fuse_layers(model, lambda linear: True)
    assert num_fused(model) == 0
