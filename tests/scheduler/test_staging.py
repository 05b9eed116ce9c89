"""Arrays of several types and sizes arrive as they were, in one piece of memory."""

import numpy as np
import torch

from penstock.scheduler.staging import packed_bytes, upload, upload_into, views

ARRAYS = [
    np.arange(5, dtype=np.int64),
    np.array([7], np.int32),
    np.zeros(0, np.int32),
    np.arange(6, dtype=np.float64).reshape(2, 3).T,  # not contiguous
]


def test_packed_arrays_are_found_again() -> None:
    static = torch.full((packed_bytes(ARRAYS) + 32,), 255, dtype=torch.uint8)
    found = views(static, ARRAYS)
    upload_into(static, ARRAYS)
    assert [tensor.tolist() for tensor in found] == [array.tolist() for array in ARRAYS]
    assert all(tensor.data_ptr() % 16 == static.data_ptr() % 16 for tensor in found if tensor.numel())
    assert (static[-32:] == 255).all()
    upload_into(static, [array + 1 for array in ARRAYS])
    assert [tensor.tolist() for tensor in found] == [(array + 1).tolist() for array in ARRAYS]


def test_on_a_cpu_nothing_is_copied() -> None:
    tensors = upload(ARRAYS[:2], torch.device("cpu"))
    assert [tensor.data_ptr() for tensor in tensors] == [array.ctypes.data for array in ARRAYS[:2]]
