"""Encoder layers on the CPU in native code: packs their weights and divides texts among threads.

In bfloat16 the operands of the products are bfloat16, everything between them is float32, attention included.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from .encoder import Activation, Affine, EncoderLayer, EncoderShape
from .native import library

_PANEL = 64  # columns that are computed at once, as in encoder_product.h
_ACTIVATIONS: dict[Activation, int] = {"gelu": 1, "gelu_tanh": 2, "relu": 3}
# Rows that a thread takes through all layers at once. Fewer would read the weights too often, and of more the
# activations leave the nearest caches; towards the end groups become small, so that no thread waits long for the last.
_MIN_GROUP, _MAX_GROUP = 32, 128
_GROUPS_A_THREAD = 3

_Pair = ctypes.c_void_p * 2


class _Layer(ctypes.Structure):
    _fields_ = [(name, _Pair) for name in ("qkv", "output", "up", "down", "attention_norm", "output_norm")]


class _Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("num_layers", "hidden", "heads", "head_dim", "inner", "half")),
        ("activation", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("epsilon", ctypes.c_float),
    ]


class NativeEncoder:
    """`encode_reference` with packed weights, for float32 and bfloat16."""

    @staticmethod
    def can_run(layers: Sequence[EncoderLayer]) -> bool:
        """Whether this machine has the native code and the layers suit it."""
        weights = [weight for layer in layers for weight, _ in (layer.qkv, layer.output, layer.up, layer.down)]
        return (
            library() is not None
            and {weight.device.type for weight in weights} == {"cpu"}
            and {weight.dtype for weight in weights} in ({torch.float32}, {torch.bfloat16})
            and (weights[0].dtype == torch.float32 or all(weight.shape[1] % 2 == 0 for weight in weights))
        )

    def __init__(self, layers: Sequence[EncoderLayer], shape: EncoderShape) -> None:
        """Pack the weights; the caller drops the originals to free their memory."""
        compiled = library()
        assert compiled is not None, "can_run was not asked"
        self._library = compiled
        self._encode = compiled.penstock_encode
        self.dtype = layers[0].qkv[0].dtype
        self._tensors: list[torch.Tensor] = []  # what the pointers point to
        self._layers = (_Layer * len(layers))(*[self._pack_layer(layer) for layer in layers])
        inner, hidden = layers[0].up[0].shape
        self._model = _Model(
            layers=ctypes.addressof(self._layers),
            num_layers=len(layers),
            hidden=hidden,
            heads=shape.num_heads,
            head_dim=shape.head_dim,
            inner=inner,
            half=self.dtype == torch.bfloat16,
            activation=_ACTIVATIONS[shape.activation],
            scale=shape.scale,
            epsilon=shape.eps,
        )
        compiled.penstock_encoder_workspace.restype = ctypes.c_int64
        self._memory = torch.empty(0)

    def __call__(
        self, states: torch.Tensor, lengths: Sequence[int], position_bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Take packed texts through all layers.

        A text's result is bitwise the same whatever texts are beside it, and for any number of threads.

        Args:
            states: [T, E], of the dtype of the layers.
            lengths: tokens of each text, none 0; their sum is T.
            position_bias: [H, S, S] float32 contiguous, added to the scores of attention; S is at least the longest
                length.

        Returns:
            [T, E] of that dtype.
        """
        num_threads = torch.get_num_threads()
        groups = group_texts(lengths, num_threads)
        starts = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        group_rows = int(np.diff(starts[groups]).max())
        size: int = self._library.penstock_encoder_workspace(
            ctypes.byref(self._model), ctypes.c_int64(group_rows), ctypes.c_int64(max(lengths))
        )
        if self._memory.numel() < num_threads * size:
            self._memory = torch.empty(num_threads * size)
        result = states.to(torch.float32, copy=True, memory_format=torch.contiguous_format)  # [T, E]
        self._encode(
            ctypes.byref(self._model),
            ctypes.c_void_p(result.data_ptr()),
            ctypes.c_void_p(starts.ctypes.data),
            ctypes.c_void_p(groups.ctypes.data),
            ctypes.c_int64(len(groups) - 1),
            ctypes.c_void_p(None if position_bias is None else position_bias.data_ptr()),
            ctypes.c_int64(0 if position_bias is None else position_bias.shape[-1]),
            ctypes.c_void_p(self._memory.data_ptr()),
            ctypes.c_int64(size),
            ctypes.c_int64(group_rows),
            ctypes.c_int(num_threads),
        )
        return result.to(self.dtype)

    def _pack_layer(self, layer: EncoderLayer) -> _Layer:
        products = {name: self._pack(getattr(layer, name)) for name in ("qkv", "output", "up", "down")}
        norms = {name: self._pointers(*getattr(layer, name)) for name in ("attention_norm", "output_norm")}
        return _Layer(**products, **norms)

    def _pack(self, product: Affine) -> "ctypes.Array[ctypes.c_void_p]":
        """The weight as panels [N / 64, K, 64], in bfloat16 [N / 64, K / 2, 64, 2]; N is filled up with zeros."""
        weight, bias = product
        num_outputs, num_inputs = weight.shape
        padded = functional.pad(weight.detach(), (0, 0, 0, -num_outputs % _PANEL))
        width = 1 if self.dtype == torch.float32 else 2  # elements of a dword
        panels = padded.view(-1, _PANEL, num_inputs // width, width).transpose(1, 2).contiguous()
        return self._pointers(panels, bias)

    def _pointers(self, weight: torch.Tensor, bias: torch.Tensor) -> "ctypes.Array[ctypes.c_void_p]":
        """Where both lie; one-dimensional ones become float32."""
        kept = [tensor.detach().float().contiguous() if tensor.dim() == 1 else tensor for tensor in (weight, bias)]
        self._tensors += kept
        return _Pair(*[tensor.data_ptr() for tensor in kept])


def group_texts(lengths: Sequence[int], num_threads: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Divide texts, in their order, into groups of which each is computed by one thread.

    Args:
        lengths: tokens of each text.
        num_threads: that take groups, one after the other.

    Returns:
        Where each group starts, and the number of texts: [groups + 1]. One group of all texts if the longest one would
        keep a thread longer than the rest takes; then threads share it.
    """
    remaining = sum(lengths)
    if max(lengths) * num_threads > remaining:
        return np.array([0, len(lengths)])
    boundaries, num_rows = [0], 0
    for index, length in enumerate(lengths):
        target = min(max(remaining // (_GROUPS_A_THREAD * num_threads), _MIN_GROUP), _MAX_GROUP)
        if num_rows and num_rows + length > target:
            boundaries.append(index)
            remaining -= num_rows
            num_rows = 0
        num_rows += length
    return np.array([*boundaries, len(lengths)])
