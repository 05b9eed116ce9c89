"""The gate of a gated MLP in bfloat16 on the CPU, in C.

Legend: T packed tokens, F feed-forward size.
"""

from collections.abc import Callable
from ctypes import c_int64, c_void_p
from functools import cache

import torch

from .native import function


def silu_mul_native(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu_mul` for `gate_up` [T, 2F] in bfloat16; rounds once, at the end."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(rows, size)
    _silu_mul()(gate_up.data_ptr(), rows, size, output.data_ptr())
    return output


@cache
def _silu_mul() -> Callable[..., None]:
    return function("penstock_silu_mul", c_void_p, c_int64, c_int64, c_void_p)
