"""Brings a step's arrays to the device in one copy that nothing waits for.

Every copy to a GPU costs the host some ten microseconds, and one from ordinary memory may wait for all that the GPU has
to do before. So the arrays of a step are packed into one block of pinned memory. That block may be let go at once:
PyTorch hands it out again only when the copy is done.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_ALIGNMENT = 16  # bytes: kernels read several numbers at once

Arrays = Sequence[npt.NDArray[Any]]


def upload(arrays: Arrays, device: torch.device) -> list[torch.Tensor]:
    """The arrays as tensors on `device`; on a CPU they share their memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    packed = _pack(arrays, pinned=True).to(device, non_blocking=True)
    return views(packed, arrays)


def upload_into(static: torch.Tensor, arrays: Arrays) -> None:
    """Overwrite the beginning of `static`, [bytes] uint8 on any device, in which `views` finds the arrays."""
    packed = _pack(arrays, pinned=static.device.type == "cuda")
    static[: len(packed)].copy_(packed, non_blocking=True)


def views(static: torch.Tensor, arrays: Arrays) -> list[torch.Tensor]:
    """The tensors in `static`, [bytes] uint8, that hold what arrays of these types and shapes are uploaded into."""
    found, start = [], 0
    for array in arrays:
        dtype = torch.from_numpy(array).dtype
        found.append(static[start : start + array.nbytes].view(dtype).view(array.shape))
        start += _aligned(array.nbytes)
    return found


def packed_bytes(arrays: Arrays) -> int:
    """Bytes that the arrays take when they are packed."""
    return sum(_aligned(array.nbytes) for array in arrays)


def _pack(arrays: Arrays, *, pinned: bool) -> torch.Tensor:
    packed = torch.empty(packed_bytes(arrays), dtype=torch.uint8, pin_memory=pinned)
    target, start = packed.numpy(), 0
    for array in arrays:
        target[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        start += _aligned(array.nbytes)
    return packed


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
