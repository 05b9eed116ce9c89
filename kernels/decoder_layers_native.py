"""All layers of a decoder in bfloat16 on the CPU, in one call of C.

Legend: T packed tokens, E hidden size, F feed-forward size, D head dim.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

import torch

from .attention_batch import AttentionBatch
from .attention_native import Call, LayerKind, can_attend, prepare
from .decoder_layers import DecoderLayer
from .linear_native import StructWeight
from .native import library


class _Layer(ctypes.Structure):
    """`Layer` of decoder_layers_native.c."""

    _fields_ = (
        *((name, c_void_p) for name in ("input_norm", "post_attention_norm", "q_norm", "k_norm")),
        *((name, c_void_p) for name in ("qkv", "output", "gate_up", "down", "keys", "values")),
        *((name, c_float) for name in ("input_eps", "post_attention_eps", "head_eps", "scale", "softcap")),
        *((name, c_int32) for name in ("window", "kind")),
    )


class _Step(ctypes.Structure):
    """`Step` of decoder_layers_native.c."""

    _fields_ = (
        ("attention", Call),
        *((name, c_void_p) for name in ("states", "cos", "sin", "slots")),
        *((name, c_int64) for name in ("num_tokens", "hidden_size", "feed_forward_size")),
        *((name, c_int32) for name in ("num_layers", "num_kinds")),
    )


def can_run(layers: Sequence[DecoderLayer]) -> bool:
    """Whether `NativeDecoder` computes these layers: in bfloat16, of one shape, packed for the C kernels."""
    return library() is not None and len(set(map(_shape, layers))) == 1 and all(map(_fits, layers))


def _shape(layer: DecoderLayer) -> tuple[int, ...]:
    weights = (layer.qkv, layer.output, layer.gate_up, layer.down)
    return (
        layer.num_heads,
        layer.num_kv_heads,
        *(size for one in weights for size in (one.in_features, one.out_features)),
    )


def _fits(layer: DecoderLayer) -> bool:
    weights = (layer.qkv, layer.output, layer.gate_up, layer.down)
    norms = [layer.input_norm, layer.post_attention_norm, layer.q_norm, layer.k_norm]
    return (
        all(isinstance(one, StructWeight) and one.dtype == torch.bfloat16 for one in weights)
        and all(norm is None or norm.dtype == torch.bfloat16 for norm in norms)
        and layer.head_dim % 32 == 0
        and (layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim == layer.qkv.out_features
    )


class NativeDecoder:
    """The layers of one model; memory for what is between them is kept from step to step."""

    def __init__(self, layers: Sequence[DecoderLayer]) -> None:
        """`layers` that `can_run` accepts."""
        self._layers = list(layers)
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._windows = sorted({layer.sliding_window or 0 for layer in layers})
        self._structs = (_Layer * len(self._layers))(*map(self._describe, self._layers))
        self._cache_addresses: tuple[int, int] | None = None
        self._accepts_caches = False

    def use_caches(self, caches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> bool:
        """Store keys and values there from now on.

        Args:
            caches: keys and values of each layer, see `paged_attention`: all parts of one tensor, so that no layer's
                moves without the first one's.

        Returns:
            Whether the C kernels work with caches like these.
        """
        keys, values = caches[0]
        addresses = keys.data_ptr(), caches[-1][1].data_ptr()
        if addresses != self._cache_addresses:
            self._cache_addresses = addresses
            self._accepts_caches = self._fit(caches)
            for struct, (layer_keys, layer_values) in zip(self._structs, caches, strict=True):
                struct.keys, struct.values = layer_keys.data_ptr(), layer_values.data_ptr()
            first = self._layers[0]
            self._kind = LayerKind(
                query_shape=torch.Size((0, first.num_heads, first.head_dim)),
                query_stride=(first.num_heads * first.head_dim, first.head_dim, 1),
                key_shape=keys.shape,
                key_block_stride=keys.stride(0),
                value_head_dim=values.shape[3],
                value_block_stride=values.stride(0),
                scale=first.scale,
                sliding_window=first.sliding_window,
                softcap=first.softcap,
            )
        return self._accepts_caches

    def _fit(self, caches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> bool:
        keys, values = caches[0]
        alike = {(one.shape, one.stride(), one.dtype) for pair in caches for one in pair}
        if len(alike) > 1 or keys.dtype != torch.bfloat16:
            return False
        return can_attend(keys.dtype, self._layers[0].num_heads, keys.shape[1:], values.shape[3])

    def run(self, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        """`decoder_layers_reference` with this object's layers and caches, bit for bit as the native operations.

        Args:
            states: [T, E] bfloat16, contiguous; overwritten.
            cos: [T, D] bfloat16, contiguous.
            sin: [T, D] likewise.
            batch: the step's rows.

        Returns:
            [T, E], which is `states`.
        """
        step = _Step(
            attention=prepare(self._kind, torch.bfloat16, batch),
            states=states.data_ptr(),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            slots=batch.slot_mapping.data_ptr(),
            num_tokens=states.shape[0],
            hidden_size=states.shape[1],
            feed_forward_size=self._layers[0].down.in_features,
            num_layers=len(self._layers),
            num_kinds=len(self._windows),
        )
        scratch_bytes, run_layers = _functions()
        wanted = scratch_bytes(self._structs, ctypes.byref(step))
        if len(self._scratch) < wanted:
            self._scratch = torch.empty(wanted, dtype=torch.uint8)  # torch aligns to 64 bytes
        if run_layers(self._structs, ctypes.byref(step), self._scratch.data_ptr()):
            raise MemoryError("no memory for the layers of a step")
        return states

    def _describe(self, layer: DecoderLayer) -> _Layer:
        def address(weight: object) -> int:
            assert isinstance(weight, StructWeight)
            return weight.address

        window = layer.sliding_window or 0
        return _Layer(
            input_norm=layer.input_norm.data_ptr(),
            post_attention_norm=layer.post_attention_norm.data_ptr(),
            q_norm=None if layer.q_norm is None else layer.q_norm.data_ptr(),
            k_norm=None if layer.k_norm is None else layer.k_norm.data_ptr(),
            qkv=address(layer.qkv),
            output=address(layer.output),
            gate_up=address(layer.gate_up),
            down=address(layer.down),
            input_eps=layer.input_eps,
            post_attention_eps=layer.post_attention_eps,
            head_eps=layer.head_eps,
            scale=layer.scale,
            softcap=layer.softcap or 0.0,
            window=window,
            kind=self._windows.index(window),
        )


@cache
def _functions() -> tuple[Any, Any]:
    """The bytes that a step needs, and the layers themselves."""
    loaded = library()
    assert loaded is not None
    scratch_bytes, run_layers = loaded.penstock_decoder_scratch_bytes, loaded.penstock_decoder_layers
    scratch_bytes.argtypes, scratch_bytes.restype = [c_void_p, c_void_p], c_int64
    run_layers.argtypes, run_layers.restype = [c_void_p, c_void_p, c_void_p], ctypes.c_int
    return scratch_bytes, run_layers
