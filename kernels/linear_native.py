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

_PANEL = 32  # outputs of a panel, as in linear_native.c
_DTYPES = {torch.bfloat16: 0, torch.float32: 1}
_ACTIVATIONS: dict[Activation, int] = {"none": 0, "gelu": 1}


class _Weight(ctypes.Structure):
    """`struct linear_weight` of linear_native.h."""

    _fields_ = [
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("num_outputs", c_int64),
        ("num_inputs", c_int64),
        ("dtype", c_int),
    ]


def can_run_native(dtype: torch.dtype) -> bool:
    """Whether the C kernels are there and the fastest for weights of this dtype."""
    if library() is None or dtype not in _DTYPES:
        return False
    return dtype != torch.bfloat16 or not torch.cpu._is_amx_tile_supported()


class NativeWeight(PackedWeight):
    """A weight in panels of 32 outputs; its numbers are padded with zeros to whole panels."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """`weight` [N, K], `bias` [N]."""
        super().__init__(weight)
        weight = weight.detach()
        if weight.stride(1) != 1:
            weight = weight.contiguous()
        num_outputs, num_inputs = weight.shape
        words = -(-num_inputs * weight.itemsize // 4)  # the 32-bit words of a row
        self._panels = torch.empty(-(-num_outputs // _PANEL), words, _PANEL, dtype=torch.int32)
        self._bias = None if bias is None else bias.detach().float().contiguous()
        dtype = _DTYPES[weight.dtype]
        _pack()(weight.data_ptr(), weight.stride(0), num_outputs, num_inputs, dtype, self._panels.data_ptr())
        bias_address = None if self._bias is None else self._bias.data_ptr()
        self._struct = _Weight(self._panels.data_ptr(), bias_address, num_outputs, num_inputs, dtype)
        self.address = ctypes.addressof(self._struct)
        """Of the C struct, for kernels that take whole layers; valid as long as this object."""
        self._multiply = _linear()

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


@cache
def _pack() -> Callable[..., None]:
    return function("penstock_linear_pack", c_void_p, c_int64, c_int64, c_int64, c_int, c_void_p)


@cache
def _linear() -> Callable[..., None]:
    rows = (c_void_p, c_int64)
    return function("penstock_linear", c_void_p, *rows, *rows, *rows, c_int64, c_int)
