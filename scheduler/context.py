"""The forward context: what the attention function needs and transformers' models do not pass through.

A model calls the registered attention function with its layer's queries, keys and values only. Where those keys go and
which ones a query may see belongs to the step, so the runner puts it here around the call of the model. This is the one
module global of the engine: keyword arguments would have to come through the code of every model, and not all pass on
what they do not know. It belongs to a thread: one may try out a model that is being loaded while another serves.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch.nn import functional

from penstock.kernels.attention import AttentionBatch, cached_attention, paged_attention

from .layer_cache import LayerCache, LayerShape

# T packed tokens, H query heads, K kv heads, D head dim (Dv of the values), B blocks, S block size

Store: TypeAlias = Callable[[torch.Tensor, LayerCache, torch.Tensor], torch.Tensor]
"""Given a layer's projections [T, ...], its cache and the step's slots [T], puts the keys and values of the projections
there and returns the queries [T, H, D], positions applied."""


class ForwardContext(Protocol):
    """What one forward pass does at each attention layer."""

    def attend(
        self,
        layer_idx: int,
        query: torch.Tensor,  # [T, H, D]
        key: torch.Tensor,  # [T, K, D]
        value: torch.Tensor,  # [T, K, Dv]
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,  # [H]
    ) -> torch.Tensor:
        """Attention output of one layer, [T, H, Dv]."""
        ...

    def attend_stored(
        self,
        layer_idx: int,
        shape: LayerShape,
        projections: torch.Tensor,  # [T, ...]
        store: Store,
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """The same for a layer of `shape` that applies positions and stores its keys in one go, by `store`."""
        ...


@dataclass(slots=True)
class PagedContext:
    """A step over the paged KV cache."""

    batch: AttentionBatch
    caches: dict[int, LayerCache]
    """By layer index."""
    layers_run: list[int] = field(default_factory=list)
    """Layers in the order in which they attended."""

    def attend(
        self,
        layer_idx: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Write the step's keys and values, then attend to the cache."""
        self.layers_run.append(layer_idx)
        cache = self.caches[layer_idx]
        return paged_attention(
            query,
            key,
            value,
            cache.key,
            cache.value,
            self.batch,
            scale=scale,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks=sinks,
            key_scale=cache.key_scale,
            value_scale=cache.value_scale,
        )

    def attend_stored(
        self,
        layer_idx: int,
        shape: LayerShape,
        projections: torch.Tensor,  # [T, ...]
        store: Store,
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Let the layer store its keys and values, then attend to the cache."""
        self.layers_run.append(layer_idx)
        cache = self.caches[layer_idx]
        query = store(projections, cache, self.batch.slot_mapping)
        return cached_attention(
            query,
            cache.key,
            cache.value,
            self.batch,
            scale=scale,
            sliding_window=sliding_window,
            softcap=softcap,
            key_scale=cache.key_scale,
            value_scale=cache.value_scale,
        )


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What one attention layer asked for in a trial."""

    layer_idx: int
    shape: LayerShape
    scale: float
    sliding_window: int | None
    softcap: float | None
    has_sinks: bool


@dataclass(slots=True)
class Trial:
    """A forward pass before there is a cache: attends densely and notes what each layer asks for.

    Configs name head counts, sizes and windows in many ways, and latent-attention models cache other sizes than any of
    them: what arrives at the attention function is the truth.
    """

    calls: list[LayerCall] = field(default_factory=list)

    def attend(
        self,
        layer_idx: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Every token attends to every other: no model's attention, but a function of all that a layer computes."""
        shape = LayerShape(key.shape[1], key.shape[2], value.shape[2], key.dtype)
        self.calls.append(LayerCall(layer_idx, shape, scale, sliding_window, softcap, sinks is not None))
        query, key, value = (states.transpose(0, 1).unsqueeze(0) for states in (query, key, value))  # [1, heads, T, D]
        output = functional.scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=True)
        return output[0].transpose(0, 1).contiguous()  # [T, H, Dv]

    def attend_stored(
        self,
        layer_idx: int,
        shape: LayerShape,
        projections: torch.Tensor,  # [T, ...]
        store: Store,
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """The same, with a cache of one block that has a slot for each token."""
        num_tokens, device = projections.shape[0], projections.device
        key_cache, value_cache = (
            torch.zeros(1, shape.num_kv_heads, num_tokens, dim, dtype=shape.dtype, device=device)
            for dim in (shape.head_dim, shape.value_head_dim)
        )
        query = store(projections, LayerCache(key_cache, value_cache), torch.arange(num_tokens, device=device))
        return self.attend(
            layer_idx,
            query,
            key_cache[0].transpose(0, 1),  # [T, K, D]
            value_cache[0].transpose(0, 1),  # [T, K, Dv]
            scale=scale,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks=None,
        )


_current: ContextVar[ForwardContext] = ContextVar("forward_context")


def current_context() -> ForwardContext:
    """The context of the forward pass that is running in this thread.

    Raises:
        RuntimeError: no forward pass is running: the model was called by something else than the runner.
    """
    context = _current.get(None)
    if context is None:
        raise RuntimeError("paged attention was called outside of a runner's forward pass")
    return context


@contextmanager
def forward_context(context: ForwardContext) -> Iterator[None]:
    """Make `context` the current one for the duration of a forward pass."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
