"""Tokenizers, sizes and texts for tiny random encoders."""

import random

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["water", "pipe", "press", "turbine", "server", "token", "batch", "queue", "client", "model", "text", "vector"]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def write_tokenizer(folder, *, padding_side="right", end=False, token_types=False) -> None:
    """Sixteen words; `end`: only an end token is added; `token_types`: the second text of a pair has another type."""
    vocab = {word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>" if end else "<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1" if token_types else "<s> $A </s> </s> $B </s>",
        special_tokens=ends,
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side=padding_side,
        model_max_length=64,
        model_input_names=["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"],
    ).save_pretrained(folder)


def random_texts(number: int) -> list[str]:
    chooser = random.Random(number)
    return [" ".join(chooser.choices(WORDS, k=chooser.randint(1, 60))) for _ in range(number)]
