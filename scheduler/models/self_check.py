"""Proves at load that an architecture nobody has tried gives packed, paged requests what it gives single ones."""

import numpy as np
import torch
from transformers import PreTrainedModel

from penstock.kernels.attention import AttentionBatch

from ..context import PagedContext, forward_context
from ..errors import UnsupportedModelError
from ..layer_cache import LayerCache
from .attention import ATTENTION_NAME

# T packed tokens, V vocab

_LENGTHS = (5, 3, 7)  # tokens of the prompts, each within one block
_BLOCKS = (2, 0, 1)  # the block of each: out of order, as in real life
NUM_BLOCKS = len(_BLOCKS)
_FIRST_CHUNK = 4  # the last prompt is computed in two steps

# Median over the tokens of the relative error of their logits. Rounding gives 1e-6 in float32 and a few
# 1e-2 in bfloat16 (up to 0.17 in small random mixtures of experts, where it sends tokens to other experts); requests
# that see each other are wrong in most tokens by about 1.
_MAX_ERROR = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.25}


def single_logits(model: PreTrainedModel) -> list[torch.Tensor]:
    """Logits [tokens, V] of each prompt alone, through transformers' own attention: call it before any surgery."""
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    with torch.inference_mode():
        logits = [
            model(input_ids=prompt.unsqueeze(0).to(model.device), use_cache=False).logits[0].float()
            for prompt in _prompts(model.config.vocab_size)
        ]
    model.set_attn_implementation(ATTENTION_NAME)
    return logits


def check_packed(
    model: PreTrainedModel, caches: dict[int, LayerCache], block_size: int, expected: list[torch.Tensor]
) -> None:
    """Compare the packed, paged logits of the prompts with `expected`, those of `single_logits`.

    Args:
        model: attends through the paged function.
        caches: `NUM_BLOCKS` blocks for every layer.
        block_size: at least 8.
        expected: [tokens, V] of each prompt.

    Raises:
        UnsupportedModelError: they differ by more than rounding explains.
    """
    first = _forward(model, caches, block_size, [(0, 0, 5), (1, 0, 3), (2, 0, _FIRST_CHUNK)])
    second = _forward(model, caches, block_size, [(2, _FIRST_CHUNK, 7)])
    actual = torch.cat([first, second])  # [T, V]: prompt order is kept
    wanted = torch.cat(expected).to(actual.device)  # [T, V]
    spread = wanted - wanted.mean(dim=-1, keepdim=True)
    errors = (actual - wanted).norm(dim=-1) / spread.norm(dim=-1)  # [T]
    error = float(errors.median())
    limit = _MAX_ERROR.get(model.dtype, _MAX_ERROR[torch.bfloat16])
    if not error <= limit:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be served: its answers change when requests share a batch "
            f"(relative error {error:.3g}, limit {limit:.3g})"
        )


def _forward(
    model: PreTrainedModel, caches: dict[int, LayerCache], block_size: int, rows: list[tuple[int, int, int]]
) -> torch.Tensor:
    """Logits [T, V] of one packed step; a row is (prompt, start, end)."""
    prompts = _prompts(model.config.vocab_size)
    slots = [np.arange(start, end) + _BLOCKS[prompt] * block_size for prompt, start, end in rows]
    batch = AttentionBatch.build(
        [[_BLOCKS[prompt]] for prompt, _, _ in rows],
        [end for _, _, end in rows],
        [end - start for _, start, end in rows],
        np.concatenate(slots),
        block_size,
        model.device,
    )
    input_ids = torch.cat([prompts[prompt][start:end] for prompt, start, end in rows])
    position_ids = torch.cat([torch.arange(start, end) for _, start, end in rows])
    with torch.inference_mode(), forward_context(PagedContext(batch, caches)):
        output = model(
            input_ids=input_ids.unsqueeze(0).to(model.device),
            position_ids=position_ids.unsqueeze(0).to(model.device),
            use_cache=False,
        )
    logits: torch.Tensor = output.logits[0].float()
    return logits


def _prompts(vocab_size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocab_size, (length,), generator=generator) for length in _LENGTHS]
