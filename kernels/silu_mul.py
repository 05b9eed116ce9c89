"""The gate of a gated MLP: `silu(gate) * up`, both the output of one matrix product.

Legend: T packed tokens, F feed-forward size.
"""

import torch
from torch.nn import functional

from .native import is_native
from .silu_mul_native import silu_mul_native


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` with silu(x) = x / (1 + exp(-x)) (arXiv 2002.05202).

    Args:
        gate_up: [T, 2F], contiguous: the gates, then what they multiply.

    Returns:
        [T, F] of the same dtype, contiguous; computed in float32 by kernels.
    """
    if gate_up.is_cpu:
        return silu_mul_native(gate_up) if is_native(gate_up) else silu_mul_reference(gate_up)
    from .silu_mul_triton import silu_mul_triton

    return silu_mul_triton(gate_up)


def silu_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu_mul` in plain torch; rounds the gate before the product, as transformers does."""
    gate, up = gate_up.chunk(2, dim=-1)  # [T, F] each
    return functional.silu(gate).mul_(up)
