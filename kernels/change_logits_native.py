"""Changes of logits on processors with native kernels: hands the rows to change_logits_native.c."""

import ctypes

import torch

from .change_logits import LogitChanges

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def change_logits_native(kernels: ctypes.CDLL, logits: torch.Tensor, changes: LogitChanges) -> torch.Tensor:
    """`change_logits.change_logits`, with the `kernels` that `native.library` has loaded.

    Args:
        kernels: the native code.
        logits: [R, V] float32, bfloat16 or float16, contiguous in V.
        changes: for each row, all contiguous.
    """
    num_rows, vocab_size = logits.shape
    values = torch.empty(num_rows, vocab_size, dtype=torch.float32)
    kernels.penstock_change_logits(
        ctypes.c_void_p(logits.data_ptr()),
        ctypes.c_int64(_DTYPES[logits.dtype]),
        ctypes.c_int64(logits.stride(0) * logits.element_size()),
        ctypes.c_int64(num_rows),
        ctypes.c_int64(vocab_size),
        ctypes.c_void_p(changes.entry_starts.data_ptr()),
        ctypes.c_void_p(changes.entry_ids.data_ptr()),
        ctypes.c_void_p(changes.entry_values.data_ptr()),
        ctypes.c_void_p(changes.count_rows.data_ptr()),
        ctypes.c_void_p(changes.penalties.data_ptr()),
        ctypes.c_void_p(changes.counts.data_ptr()),
        ctypes.c_void_p(changes.mask_rows.data_ptr()),
        ctypes.c_void_p(changes.bits.data_ptr()),
        ctypes.c_int64(changes.bits.stride(0) * changes.bits.element_size()),
        ctypes.c_void_p(values.data_ptr()),
    )
    return values
