"""RMS norm of bfloat16 rows on the CPU, in C.

Legend: T packed tokens, E hidden size.
"""

from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache

import torch

from .native import function


def rms_norm_native(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`rms_norm` for `x` [T, E] in bfloat16 and `weight` [E] in bfloat16 or float32."""
    rows, size = x.shape
    output = x.new_empty(rows, size)
    wide = weight.dtype == torch.float32
    _rms_norm()(x.data_ptr(), x.stride(0), weight.data_ptr(), wide, eps, rows, size, output.data_ptr())
    return output


def add_rms_norm_native(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`add_rms_norm`, likewise."""
    rows, size = x.shape
    total, output = x.new_empty(rows, size), x.new_empty(rows, size)
    _add_rms_norm()(
        x.data_ptr(),
        x.stride(0),
        residual.data_ptr(),
        residual.stride(0),
        weight.data_ptr(),
        weight.dtype == torch.float32,
        eps,
        rows,
        size,
        total.data_ptr(),
        output.data_ptr(),
    )
    return output, total


@cache
def _rms_norm() -> Callable[..., None]:
    return function("penstock_rms_norm", c_void_p, c_int64, c_void_p, c_int, c_float, c_int64, c_int64, c_void_p)


@cache
def _add_rms_norm() -> Callable[..., None]:
    inputs = (c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int, c_float)
    return function("penstock_add_rms_norm", *inputs, c_int64, c_int64, c_void_p, c_void_p)
