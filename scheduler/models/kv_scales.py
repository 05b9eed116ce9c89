"""Scales of keys and values that are kept in float8, by what a short text of random tokens shows.

float8 e4m3 keeps 4 significant bits of any number between 2^-6 and 448, and a scale for each head moves its keys or
values there. They are so far from the ends of that range that the exact scale does not matter, as long as it is not off
by a factor of hundreds, as no scale at all is for some models.
"""

import logging
from collections.abc import Mapping

import numpy as np
import torch
from transformers import PreTrainedModel

from penstock.kernels.attention import AttentionBatch
from penstock.kernels.quantize_fp8 import MAX_FP8, MIN_PEAK

from ..config import ModelSpec
from ..context import PagedContext, forward_context
from ..device import has_float8
from ..errors import ModelLoadError
from ..layer_cache import KVScales, LayerCache

logger = logging.getLogger(__name__)

# K kv heads, B blocks, S block size

NUM_TOKENS = 256
"""So long a text is enough."""
_HEADROOM = 2.0  # other texts have larger numbers; what is beyond is cut off


def check_kv_cache(spec: ModelSpec, device: torch.device) -> None:
    """Whether the device keeps keys and values as `spec` asks for.

    Raises:
        ModelLoadError: it cannot; the message says why and what can be done.
    """
    if spec.kv_cache_dtype == "auto":
        return
    asked = f"kv_cache_dtype {spec.kv_cache_dtype} of {spec.name}"
    if not has_float8(device):
        raise ModelLoadError(f"{asked} needs a GPU with float8 (compute capability 8.9 or later): use auto")
    if device.type == "cpu":
        logger.warning("%s is slower than auto on a CPU: it is for trials there", asked)


def measure_scales(model: PreTrainedModel, caches: Mapping[int, LayerCache]) -> dict[int, KVScales]:
    """Run a text through `model` and look how large its keys and values become.

    Args:
        model: attends through the paged function.
        caches: of the model's own dtype and cleared, for every layer; as many tokens as fit are tried.

    Returns:
        By layer index.
    """
    num_blocks, _, block_size, _ = next(iter(caches.values())).key.shape
    num_tokens = num_blocks * block_size
    batch = AttentionBatch.build(
        [list(range(num_blocks))], [num_tokens], [num_tokens], np.arange(num_tokens), block_size, model.device
    )
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (1, num_tokens), generator=generator).to(model.device)
    positions = torch.arange(num_tokens, device=model.device).unsqueeze(0)
    with torch.inference_mode(), forward_context(PagedContext(batch, dict(caches))):
        model.base_model(input_ids=tokens, position_ids=positions, use_cache=False)
    return {index: KVScales(_scale(cache.key), _scale(cache.value)) for index, cache in caches.items()}


def _scale(cache: torch.Tensor) -> torch.Tensor:
    """[K] float32 of a cache [B, K, S, D]."""
    peak = cache.abs().amax(dim=(0, 2, 3)).float()  # [K]
    return (_HEADROOM * peak).clamp_(min=MIN_PEAK) / MAX_FP8
