"""Models of known shapes with random weights, made on the device: speed does not depend on what the weights say."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen3Config


@dataclass(frozen=True)
class Shape:
    """A decoder, and the lower bounds of what one of its steps must read and compute."""

    name: str
    config: PreTrainedConfig

    @property
    def num_parameters(self) -> int:
        """Weights that a decode step reads: all but the embedding table, unless the head shares it."""
        config = self.config
        head_dim = config.head_dim
        attention = config.hidden_size * head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
        feed_forward = 3 * config.hidden_size * config.intermediate_size
        head = config.vocab_size * config.hidden_size
        return config.num_hidden_layers * (attention + feed_forward) + head

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers, in bfloat16."""
        config = self.config
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2

    def decode_floor(self, rows: int, context: int, bytes_per_second: float, flops: float) -> float:
        """Seconds that no decode step of `rows` requests with `context` tokens each can fall below.

        The weights are read once or their products computed, whichever takes longer; then the keys and values are read.
        """
        weights = max(2 * self.num_parameters / bytes_per_second, 2 * self.num_parameters * rows / flops)
        return weights + rows * context * self.kv_bytes_per_token / bytes_per_second

    def prefill_floor(self, tokens: int, flops: float) -> float:
        """Seconds that computing one prompt of so many tokens takes at least; the head is needed for one token only."""
        config = self.config
        head = config.vocab_size * config.hidden_size
        products = 2 * (self.num_parameters - head) * tokens
        # Two products of D multiply-adds for each pair of a token and an earlier one.
        attention = 2 * 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * tokens**2 / 2
        return (products + attention) / flops

    def make(self, device: str, attention: str, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """The model with small random weights and the named attention, in bfloat16 (float32 on a CPU) if not said."""
        dtype = dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
        torch.manual_seed(0)
        with torch.device(device):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                self.config, dtype=dtype, attn_implementation=attention
            )
        model.generation_config.eos_token_id = None
        model.requires_grad_(False)
        return model.eval()


def shapes(*, smoke: bool) -> dict[str, Shape]:
    """The shapes by name; `smoke`: one that any CPU runs in a moment."""
    if smoke:
        tiny = Qwen3Config(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
        return {"tiny": Shape("tiny", tiny)}
    small = Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    large = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    return {"qwen3-0.6b": Shape("qwen3-0.6b", small), "llama-3.1-8b": Shape("llama-3.1-8b", large)}
