"""Triton kernel of `silu(gate) * up`.

Legend: T packed tokens, F feed-forward size.
"""

# Arguments of Triton kernels are device pointers and numbers, for which Python has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl

TILE = 1024  # eight elements, 16 bytes of bfloat16, for each thread of four warps


@triton.jit
def silu_mul_kernel(gate_up, output, size, TILE: tl.constexpr):
    """Program (row, tile): output [T, F] of gate_up [T, 2F], both contiguous; `size` is F."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = index < size
    gate = tl.load(gate_up + row * 2 * size + index, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + index, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row * size + index, gate * tl.sigmoid(gate) * up, mask=inside)


def silu_mul_triton(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu_mul` for GPU tensors. Moves `3 * T * F` elements."""
    gate_up = gate_up.contiguous()
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(num_tokens, size)
    silu_mul_kernel[(num_tokens, triton.cdiv(size, TILE))](gate_up, output, size, TILE=TILE)
    return output
