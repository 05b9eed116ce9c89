"""Writes tiny GGUF files: a random Llama model with a byte-level or a SentencePiece vocabulary."""

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

SPECIAL = ["<|begin|>", "<|end|>", "<|eot|>"]
MERGES = ["1 2", "h e", "l l", "he ll", "hell o"]
PIECES = [*"\u2581abcdx", "ab", "\u2581a", "\u2581\u2581", "cd", "abcd", "\u2581ab", "bc"]  # earlier ones merge first
THETA, HEAD_DIM, HEADS, KV_HEADS, HIDDEN = 10000.0, 8, 4, 2, 32


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    vocab = len(SPECIAL) + 256 + len(MERGES)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of query and key rows: the two halves of a head alternate."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def gguf_tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    tensors = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        if name.startswith("model.layers."):
            layer, module = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            if module.endswith("q_proj"):
                weight = interleave(weight, HEADS)
            if module.endswith("k_proj"):
                weight = interleave(weight, KV_HEADS)
            tensors[f"blk.{layer}.{names[module]}.weight"] = weight
        else:
            tensors[{"model.embed_tokens.weight": "token_embd.weight"}.get(name, "output_norm.weight")] = weight
    return tensors


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    *,
    pre: str | None = "smollm",
    family: str = "gpt2",
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    scaling: tuple[gguf.RopeScalingType, float] | None = None,
    pieces: tuple[list[str], bool] | None = None,
) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_block_count(2)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(THETA)
    writer.add_layer_norm_rms_eps(1e-6)
    if scaling is not None:
        writer.add_rope_scaling_type(scaling[0])
        writer.add_rope_scaling_factor(scaling[1])
        writer.add_rope_scaling_orig_ctx_len(32)
    tokens = SPECIAL + sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]
    writer.add_tokenizer_model(family)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    if pieces is None:
        writer.add_token_list(tokens)
        writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_eot_token_id(2)
    else:
        writer.add_token_list(pieces[0])
        writer.add_token_scores([-float(max(0, index - 258)) for index in range(len(pieces[0]))])
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(PIECES))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_add_space_prefix(pieces[1])
    writer.add_chat_template("{{ messages[0].content }}")
    for name, weight in tensors.items():
        kind = quantization if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
