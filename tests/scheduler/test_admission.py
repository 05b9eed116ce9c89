"""Which models are refused, and why; and that each model type called proven is."""

from typing import Any

import pytest
import torch
from tiny_models import MAX_LENGTH, random_model, tiny_config
from transformers import AutoConfig, PreTrainedConfig

from penstock.scheduler.context import Trial, forward_context
from penstock.scheduler.errors import ModelLoadError, UnsupportedModelError
from penstock.scheduler.layer_cache import bytes_per_block, view_caches
from penstock.scheduler.models import self_check
from penstock.scheduler.models.admission import PROVEN, check_config, resolve_max_model_len
from penstock.scheduler.models.attention import ATTENTION_NAME, paged_attention_forward, register
from penstock.scheduler.models.surgery import speed_up

BLOCK_SIZE = 16

# Fields that the tiny common configuration does not cover
EXTRA_FIELDS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
}


def check(config: PreTrainedConfig, max_model_len: int = 256) -> None:
    check_config(config, max_model_len, trust_remote_code=False)


@pytest.mark.parametrize("model_type", sorted(PROVEN))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_proven_type_is_proven(model_type: str, dtype: torch.dtype) -> None:
    register()
    config = tiny_config(model_type, **EXTRA_FIELDS.get(model_type, {}))
    check(config)
    model = random_model(config, seed=0, attn_implementation=ATTENTION_NAME).to(dtype).eval().requires_grad_(False)
    expected = self_check.single_logits(model)
    trial = Trial()
    with forward_context(trial):
        model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
    shapes = {call.layer_idx: call.shape for call in trial.calls}
    assert sorted(shapes) == list(range(config.num_hidden_layers))
    memory = torch.zeros(self_check.NUM_BLOCKS * bytes_per_block(shapes, BLOCK_SIZE), dtype=torch.uint8)
    caches = view_caches(memory, shapes, BLOCK_SIZE)
    speed_up(model, lambda done: None)
    self_check.check_packed(model, caches, BLOCK_SIZE, expected)


def test_self_check_notices_crosstalk(monkeypatch: pytest.MonkeyPatch) -> None:
    """With attention that ignores the borders of requests, as a state-space layer would."""
    register()
    model = random_model(tiny_config("llama"), seed=0, attn_implementation=ATTENTION_NAME).eval()
    expected = self_check.single_logits(model)
    trial = Trial()

    def attend(layer_idx: int, query: Any, key: Any, value: Any, **others: Any) -> torch.Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1) for x in (query, key, value)), is_causal=True, enable_gqa=True
        )
        return out.transpose(0, 1).contiguous()

    monkeypatch.setattr(Trial, "attend", staticmethod(attend))
    monkeypatch.setattr(self_check, "PagedContext", lambda batch, caches: trial)
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM cannot be served: its answers change"):
        self_check.check_packed(model, {}, BLOCK_SIZE, expected)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (AutoConfig.for_model("llama4_text"), "chunked attention lives in a mask"),
        (AutoConfig.for_model("qwen3_next"), "linear-attention layers carry one state"),
        (AutoConfig.for_model("mamba"), "linear_attention layers"),
        (AutoConfig.for_model("rwkv"), "recurrent state"),
        (AutoConfig.for_model("minimax"), "linear_attention layers"),
        (AutoConfig.for_model("lfm3"), "conv layers"),
        (AutoConfig.for_model("t5"), "encoder-decoder"),
        (AutoConfig.for_model("gemma3"), "images or audio"),
        (AutoConfig.for_model("llava"), "images or audio"),
        (AutoConfig.for_model("bloom"), "no attention backend support"),
        (AutoConfig.for_model("vit"), "no causal language model"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_refused(config: PreTrainedConfig, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        check(config)
    assert config.model_type in str(caught.value)


ROPE = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 256},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 2.0,
        "original_max_position_embeddings": 256,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
    },
}


@pytest.mark.parametrize("kind", sorted(ROPE))
def test_rope_that_couples_requests(kind: str) -> None:
    model_type = "phi3" if kind == "longrope" else "llama"
    config = tiny_config(model_type, rope_parameters=ROPE[kind], original_max_position_embeddings=256)
    check(config, 256)
    with pytest.raises(UnsupportedModelError, match=f"{kind} rotary embedding .* at most 256"):
        check(config, 257)


def test_fixed_rope_is_served_at_full_length() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 256}
    check(tiny_config("llama", rope_parameters=rope), MAX_LENGTH)


class TestMaxModelLen:
    def test_default_is_the_configs(self) -> None:
        assert resolve_max_model_len(tiny_config("llama"), 0, "m") == MAX_LENGTH

    def test_less_is_fine(self) -> None:
        assert resolve_max_model_len(tiny_config("llama"), 100, "m") == 100

    def test_more_is_refused(self) -> None:
        with pytest.raises(ModelLoadError, match="max_model_len 513 of m exceeds the 512 positions"):
            resolve_max_model_len(tiny_config("llama"), MAX_LENGTH + 1, "m")


class TestAttentionArguments:
    def call(self, module: torch.nn.Module | None = None, **arguments: Any) -> tuple[torch.Tensor, None]:
        module = module or torch.nn.Module()
        module.layer_idx = 0
        query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)
        with forward_context(Trial()):
            return paged_attention_forward(module, query, key, key, **arguments)

    def test_harmless_ones_pass(self) -> None:
        arguments = {"attention_mask": None, "position_ids": torch.arange(3), "use_cache": False, "strange": None}
        output, weights = self.call(scaling=0.5, dropout=0.0, is_causal=True, **arguments)
        assert output.shape == (1, 3, 4, 8)
        assert weights is None

    @pytest.mark.parametrize(
        ("argument", "reason"),
        [
            ({"attention_mask": torch.ones(1)}, "an attention mask of its own"),
            ({"position_bias": torch.ones(1)}, "a position bias"),
            ({"is_causal": False}, "attention to later tokens"),
            ({"dropout": 0.1}, "dropout 0.1"),
            ({"alibi_slopes": torch.ones(4), "chunk": 4}, "unknown argument.s. alibi_slopes, chunk"),
        ],
    )
    def test_others_are_refused(self, argument: dict[str, Any], reason: str) -> None:
        with pytest.raises(UnsupportedModelError, match=reason):
            self.call(**argument)

    def test_module_that_looks_ahead_is_refused(self) -> None:
        module = torch.nn.Module()
        module.is_causal = False
        with pytest.raises(UnsupportedModelError, match="attention to later tokens"):
            self.call(module)

    def test_outside_of_a_runner(self) -> None:
        query = torch.randn(1, 4, 3, 8)
        module = torch.nn.Module()
        module.layer_idx = 0
        with pytest.raises(RuntimeError, match="outside of a runner"):
            paged_attention_forward(module, query, query, query)
