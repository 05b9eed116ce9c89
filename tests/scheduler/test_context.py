import numpy as np
import torch

from penstock.kernels.attention import AttentionBatch
from penstock.scheduler.context import ForwardContext, LayerCall, PagedContext, Trial
from penstock.scheduler.layer_cache import LayerCache, LayerShape

SHAPE = LayerShape(num_kv_heads=2, head_dim=16, value_head_dim=16, dtype=torch.float32)
HEADS = 4
PROJECTIONS = torch.randn(6, HEADS + 4, 16, generator=torch.Generator().manual_seed(0))  # [T, H + 2K, D]
QUERY, KEY, VALUE = PROJECTIONS.split([HEADS, 2, 2], dim=1)


def store(projections: torch.Tensor, cache: LayerCache, slots: torch.Tensor) -> torch.Tensor:
    query, key, value = projections.split([HEADS, 2, 2], dim=1)
    block_size = cache.key.shape[2]
    cache.key[slots // block_size, :, slots % block_size] = key
    cache.value[slots // block_size, :, slots % block_size] = value
    return query


def both_ways(context: ForwardContext) -> tuple[torch.Tensor, torch.Tensor]:
    """Output of a layer that hands over its states, and of one that stores its keys itself."""
    plain = context.attend(3, QUERY, KEY, VALUE, scale=0.3, sliding_window=4, softcap=5.0, sinks=None)
    stored = context.attend_stored(3, SHAPE, PROJECTIONS, store, scale=0.3, sliding_window=4, softcap=5.0)
    return plain, stored


def test_a_trial_notes_the_same_call_of_a_layer_that_stores_its_keys() -> None:
    trial = Trial()
    plain, stored = both_ways(trial)
    assert torch.equal(plain, stored)
    assert trial.calls == [LayerCall(3, SHAPE, 0.3, 4, 5.0, has_sinks=False)] * 2


def test_a_step_gives_the_same_to_a_layer_that_stores_its_keys() -> None:
    batch = AttentionBatch.build([[1, 0]], [6], [6], np.array([4, 5, 6, 7, 0, 1]), 4, "cpu")
    cache = LayerCache(torch.zeros(2, 2, 4, 16), torch.zeros(2, 2, 4, 16))
    context = PagedContext(batch, {3: cache})
    plain, stored = both_ways(context)
    assert torch.equal(plain, stored)
    assert context.layers_run == [3, 3]
