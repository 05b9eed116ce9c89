"""What 8 bits in weights and KV cache cost in quality: next-token distributions against those of bfloat16."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from penstock.kernels.attention import AttentionBatch
from penstock.kernels.linear import can_round_to_int8
from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.runner import GenerationRunner

TEXTS = [Path(__file__).parents[1] / name for name in ("LICENSE", "README.md", "ARCHITECTURE.md")]
VARIANTS: dict[str, dict[str, str]] = {
    "int8": {"quantization": "int8"},
    "fp8": {"quantization": "fp8"},
    "fp8 KV": {"kv_cache_dtype": "fp8"},
    "fp8, fp8 KV": {"quantization": "fp8", "kv_cache_dtype": "fp8"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a folder in Hugging Face form")
    parser.add_argument("--texts", type=Path, nargs="+", default=TEXTS, metavar="FILE")
    parser.add_argument("--tokens", type=int, default=512, help="taken from the beginning of each text")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    texts = [tokenizer(text.read_text()).input_ids[: arguments.tokens] for text in arguments.texts]
    expected = log_probabilities(load(arguments), texts)
    print(f"{'':<12} {'mean KL':>9} {'top-1 agreement':>16} {'perplexity':>11}   of {len(expected)} tokens")
    report("bfloat16", expected, expected, texts)
    for name, options in VARIANTS.items():
        if name != "int8" or (arguments.device == "cpu" and can_round_to_int8()):
            report(name, log_probabilities(load(arguments, **options), texts), expected, texts)


def load(arguments: argparse.Namespace, **options: str) -> GenerationRunner:
    spec = ModelSpec("model", str(arguments.model), "generate", dtype="bfloat16", **options)  # type: ignore[arg-type]
    return GenerationRunner.load(spec, EngineConfig(device=arguments.device), lambda stage, done: None)


def log_probabilities(runner: GenerationRunner, texts: list[list[int]]) -> torch.Tensor:
    """[tokens of all texts, V]: of the token that follows each."""
    block_size = EngineConfig().block_size
    num_blocks = -(-max(map(len, texts)) // block_size)
    memory = torch.zeros(num_blocks * runner.kv_bytes_per_block, dtype=torch.uint8, device=runner.device)
    runner.use_kv_memory(memory)
    results = []
    for text in texts:
        length = len(text)
        batch = AttentionBatch.build(
            [list(range(num_blocks))], [length], [length], np.arange(length), block_size, runner.device
        )
        tokens = torch.tensor([text], device=runner.device)
        positions = torch.arange(length, device=runner.device).unsqueeze(0)
        with torch.inference_mode():
            results.append(runner._forward(tokens, positions, batch).float().log_softmax(-1).cpu())
    return torch.cat(results)


def report(name: str, actual: torch.Tensor, expected: torch.Tensor, texts: list[list[int]]) -> None:
    divergence = (expected.exp() * (expected - actual)).sum(-1).mean()
    agreement = (expected.argmax(-1) == actual.argmax(-1)).float().mean()
    following = torch.tensor([token for text in texts for token in (*text[1:], -1)])
    known = following >= 0  # nothing follows a text's last token
    perplexity = math.exp(-actual[known, following[known]].mean())
    print(f"{name:<12} {divergence:>9.4f} {agreement:>16.1%} {perplexity:>11.2f}")


if __name__ == "__main__":
    main()
