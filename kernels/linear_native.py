"""Linear layers in C, with weights packed into panels.

Legend: T rows, K inputs, N outputs.
"""

import ctypes
from collections.abc import Callable
from ctypes import c_int, c_int64, c_void_p
from functools import cache

import torch

from .linear import Activation, PackedWeight
from .native import function, library

_PANEL = 32  # outputs of a panel, as in linear_pack_native.h
_DTYPES = {torch.bfloat16: 0, torch.float32: 1}
_INT8 = 2
_ACTIVATIONS: dict[Activation, int] = {"none": 0, "gelu": 1}


class _Weight(ctypes.Structure):
    """`struct linear_weight` of linear_native.h."""

    _fields_ = [
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("num_outputs", c_int64),
        ("num_inputs", c_int64),
        ("dtype", c_int),
    ]


def can_run_native(dtype: torch.dtype) -> bool:
    """Whether the C kernels are there and the fastest for weights of this dtype."""
    if library() is None or dtype not in _DTYPES:
        return False
    return dtype != torch.bfloat16 or not torch.cpu._is_amx_tile_supported()


class StructWeight(PackedWeight):
    """A weight that C code finds by the address of a `struct linear_weight`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight)
        self._bias = None if bias is None else bias.detach().float().contiguous()
        self._struct = _Weight(num_outputs=self.out_features, num_inputs=self.in_features)
        self._struct.bias = None if self._bias is None else self._bias.data_ptr()
        self.address = ctypes.addressof(self._struct)
        """Of the struct, for kernels that take whole layers; valid as long as this object."""
        self._multiply = _linear()

    def _new_panels(self, bytes_each: int) -> torch.Tensor:
        words = -(-self.in_features * bytes_each // 4)  # 32-bit words of a row
        panels = torch.empty(-(-self.out_features // _PANEL), words, _PANEL, dtype=torch.int32)
        self._struct.panels = panels.data_ptr()
        return panels

    def _rows(self, panels: torch.Tensor) -> torch.Tensor:
        """Rows [N, K] of panels whose last dimension counts values instead of words."""
        num_panels, words, _ = panels.shape
        values = panels.view(num_panels, words, _PANEL, -1).transpose(1, 2)  # [panels, 32, words, values in a word]
        return values.reshape(num_panels * _PANEL, -1)[: self.out_features, : self.in_features]

    def multiply(self, x: torch.Tensor, residual: torch.Tensor | None, activation: Activation) -> torch.Tensor:
        """`linear` with checked arguments."""
        num_rows, size = x.shape[0], self.out_features
        if x.stride(1) != 1:
            x = x.contiguous()
        output = torch.empty(num_rows, size, dtype=self.dtype)
        residual_address, residual_stride = None, 0
        if residual is not None:
            if residual.stride(1) != 1:
                residual = residual.contiguous()
            residual_address, residual_stride = residual.data_ptr(), residual.stride(0)
        self._multiply(
            self.address,
            x.data_ptr(),
            x.stride(0),
            residual_address,
            residual_stride,
            output.data_ptr(),
            size,
            num_rows,
            _ACTIVATIONS[activation],
        )
        return output


def can_run_int8() -> bool:
    """Whether the C kernels are there."""
    return library() is not None


class NativeWeight(StructWeight):
    """A weight as it is, in panels of 32 outputs; its numbers are padded with zeros to whole panels."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """`weight` [N, K], `bias` [N]; bfloat16 or float32."""
        super().__init__(weight, bias)
        weight = _with_whole_rows(weight)
        self._struct.dtype = _DTYPES[weight.dtype]
        self._panels = self._new_panels(weight.itemsize)
        _pack()(weight.data_ptr(), weight.stride(0), *weight.shape, self._struct.dtype, self._panels.data_ptr())

    def unpack(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight [N, K] and the bias [N] that were packed."""
        return self._rows(self._panels.view(self.dtype)), self._bias


class Int8Weight(StructWeight):
    """A weight rounded to 8 bits, with one scale for each output; inputs are rounded likewise in each product.

    An output is scale(x) * scale(w) * sum(x8 * w8), where v8 = round(v / scale(v)) and scale(v) = max |v| / 127 in
    the row v.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """`weight` [N, K], `bias` [N]; bfloat16."""
        super().__init__(weight, bias)
        weight = _with_whole_rows(weight)
        self._struct.dtype = _INT8
        self._panels = self._new_panels(1)
        self._scales = torch.empty(self.out_features)
        self._offsets = torch.empty(self.out_features, dtype=torch.int32)
        self._struct.scales, self._struct.offsets = self._scales.data_ptr(), self._offsets.data_ptr()
        results = (self._panels.data_ptr(), self._scales.data_ptr(), self._offsets.data_ptr())
        _quantize()(weight.data_ptr(), weight.stride(0), *weight.shape, _DTYPES[weight.dtype], *results)

    def unpack(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight [N, K], as it was rounded, and the bias [N]."""
        weight = self._rows(self._panels.view(torch.int8)) * self._scales.unsqueeze(1)
        return weight.to(self.dtype), self._bias


def _with_whole_rows(weight: torch.Tensor) -> torch.Tensor:
    weight = weight.detach()
    return weight if weight.stride(1) == 1 else weight.contiguous()


@cache
def _quantize() -> Callable[..., None]:
    weight = (c_void_p, c_int64, c_int64, c_int64, c_int)
    return function("penstock_linear_quantize", *weight, c_void_p, c_void_p, c_void_p)


@cache
def _pack() -> Callable[..., None]:
    return function("penstock_linear_pack", c_void_p, c_int64, c_int64, c_int64, c_int, c_void_p)


@cache
def _linear() -> Callable[..., None]:
    rows = (c_void_p, c_int64)
    return function("penstock_linear", c_void_p, *rows, *rows, *rows, c_int64, c_int)
