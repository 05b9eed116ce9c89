"""Makes tiny random models and a tiny tokenizer on disk, for every test that needs a transformers folder.

The weights are scaled so that greedy output keeps changing: a model that repeats one token proves nothing.
"""

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

EOS_ID = 2
VOCAB_SIZE = 384
MAX_LENGTH = 512

SPECIAL_TOKENS = ["<unk>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2 = EOS_ID
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": MAX_LENGTH,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_ALTERNATING = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "sliding_window": 8,
}
_MOE = {"moe_intermediate_size": 32, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3"},
    "mistral": {"model_type": "mistral", "sliding_window": 8},
    "gemma2": {"model_type": "gemma2", **_ALTERNATING, "query_pre_attn_scalar": 16},
    "gemma3": {"model_type": "gemma3_text", **_ALTERNATING, "query_pre_attn_scalar": 16},
    "phi3": {"model_type": "phi3"},
    "gpt2": {"model_type": "gpt2", "n_positions": MAX_LENGTH, "n_embd": 64, "n_layer": 3, "n_head": 4},
    "qwen3_moe": {"model_type": "qwen3_moe", **_MOE, "norm_topk_prob": True},
    "gpt_oss": {
        "model_type": "gpt_oss",
        **_ALTERNATING,
        **_MOE,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
}
"""Config fields of each family, on top of `_COMMON`; every one but gpt2 has grouped queries."""


def make_tiny(family: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a random model of `family` (a key of `FAMILIES`) into `folder`, as `save_pretrained` does.

    `changes` are config fields that replace the family's own. Returns `folder`.
    """
    fields = {**FAMILIES[family], **changes}
    model = random_model(tiny_config(fields.pop("model_type"), **fields), seed=seed)
    model.to(dtype).save_pretrained(folder)
    return folder


def make_parrot(folder: Path, tokenizer: Path, text: str, *, max_length: int) -> Path:
    """Write a model that says `text` and ends, whatever it is asked. Returns `folder`.

    Its layers add nothing, so each token leads to the next by the output matrix alone: from the last token of the
    prompt, which is a newline, through the tokens of `text`, no two of which may be the same, to the end token.

    Args:
        folder: for the model.
        tokenizer: the folder of a model whose tokenizer and chat template it gets.
        text: what it says.
        max_length: its context in tokens.
    """
    library = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    newline, *spoken = library.encode("\n" + text, add_special_tokens=False).ids
    chain = [newline, *spoken, library.token_to_id("<|im_end|>")]
    assert len(set(chain)) == len(chain), "a token that comes twice would lead to two others"
    config = tiny_config(
        "llama",
        vocab_size=library.get_vocab_size(),
        num_hidden_layers=1,
        max_position_embeddings=max_length,
        eos_token_id=chain[-1],
    )
    model = random_model(config, seed=0)
    weights = model.state_dict()
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            weights[f"model.layers.0.{name}.weight"].zero_()
        weights["model.norm.weight"].fill_(1.0)
        directions = torch.nn.functional.normalize(weights["model.embed_tokens.weight"], dim=-1)
        weights["lm_head.weight"].zero_()
        for token_id, following in pairwise(chain):
            weights["lm_head.weight"][following] = 20 * directions[token_id]
    model.generation_config.eos_token_id = chain[-1]
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder / name)
    return folder


def tiny_config(model_type: str, **fields: Any) -> PreTrainedConfig:
    """A tiny configuration of any decoder of transformers; `fields` replace or add to the common ones."""
    common = dict(_COMMON)
    if model_type == "gpt2":  # it knows neither, and its own names for the rest are aliases of these
        del common["head_dim"], common["num_key_value_heads"]
    return AutoConfig.for_model(model_type, **{**common, **fields})


def random_model(config: PreTrainedConfig, *, seed: int, **arguments: Any) -> PreTrainedModel:
    """A float32 model of `config` with random weights; `arguments` go to `from_config`."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **arguments)
    _randomise(model, seed)
    model.generation_config.eos_token_id = EOS_ID
    model.generation_config.pad_token_id = 0
    return model


def make_tiny_tokenizer(folder: Path) -> Path:
    """Write a byte-level BPE tokenizer of at most `VOCAB_SIZE` tokens with a chat template. Returns `folder`.

    <|im_end|> has id `EOS_ID`; every byte is a token, so any text makes the round trip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = [
        "the quick brown fox jumps over the lazy dog and then the other dog",
        "water under pressure turns it",
    ]
    tokenizer.train_from_iterator(sentences * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_LENGTH,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return folder


def _randomise(model: PreTrainedModel, seed: int) -> None:
    """Matrices double the size of what passes through them: the layers, not the input token, decide."""
    generator = torch.Generator().manual_seed(seed)
    embedding_size = 0.03 if "gemma" in model.config.model_type else 0.25  # Gemma multiplies by sqrt(hidden)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name or ".ln_" in name:
                parameter.add_(noise * 0.2)
            elif parameter.dim() == 1 or name.endswith(("bias", "sinks")):
                parameter.copy_(noise * 0.1)
            elif "embed" in name or "wte" in name or "wpe" in name:
                parameter.copy_(noise * embedding_size)
            else:
                parameter.copy_(noise * 2 / math.sqrt(min(parameter.shape[-2:])))
