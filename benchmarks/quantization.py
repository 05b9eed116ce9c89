"""What 8-bit linear layers cost in quality: next-token distributions against bfloat16's over a few texts."""

import argparse
import math
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from penstock.scheduler.config import ModelSpec
from penstock.scheduler.models.linear import PackedLinear
from penstock.scheduler.models.quantize import quantize

TEXTS = [Path(__file__).parents[1] / name for name in ("LICENSE", "README.md", "ARCHITECTURE.md")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a folder in Hugging Face form")
    parser.add_argument("--texts", type=Path, nargs="+", default=TEXTS, metavar="FILE")
    parser.add_argument("--tokens", type=int, default=512, help="taken from the beginning of each text")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    texts = [
        tokenizer(text.read_text(), return_tensors="pt").input_ids[:, : arguments.tokens] for text in arguments.texts
    ]
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16).eval().requires_grad_(False)
    expected = log_probabilities(model, texts)
    pack(model)
    print(f"{'':<10} {'mean KL':>9} {'top-1 agreement':>16} {'perplexity':>11}   of {len(expected)} tokens")
    report("bfloat16", expected, expected, texts)
    quantize(model, ModelSpec(arguments.model.name, str(arguments.model), "generate", quantization="int8"))
    report("int8", log_probabilities(model, texts), expected, texts)


def pack(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child.weight, child.bias))


def log_probabilities(model: nn.Module, texts: list[torch.Tensor]) -> torch.Tensor:
    """[tokens of all texts, V]: of the token that follows each."""
    with torch.inference_mode():
        return torch.cat([model(text, use_cache=False).logits[0].float().log_softmax(-1) for text in texts])


def report(name: str, actual: torch.Tensor, expected: torch.Tensor, texts: list[torch.Tensor]) -> None:
    divergence = (expected.exp() * (expected - actual)).sum(-1).mean()
    agreement = (expected.argmax(-1) == actual.argmax(-1)).float().mean()
    following = torch.cat([torch.cat([text[0, 1:], torch.tensor([-1])]) for text in texts])
    known = following >= 0  # nothing follows a text's last token
    perplexity = math.exp(-actual[known, following[known]].mean())
    print(f"{name:<10} {divergence:>9.4f} {agreement:>16.1%} {perplexity:>11.2f}")


if __name__ == "__main__":
    main()
