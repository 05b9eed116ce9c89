"""Sampling on processors with native kernels: hands the rows to sampling_native.c."""

import ctypes

import torch

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def sample_rows_native(kernels: ctypes.CDLL, logits: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """`sampling.sample_rows`, with the `kernels` that `native.library` has loaded.

    Args:
        kernels: the native code.
        logits: [R, V] float32, bfloat16 or float16, contiguous in V.
        params: [R, 5] float64.
    """
    num_rows, vocab_size = logits.shape
    params = params.contiguous()
    token_ids = torch.empty(num_rows, dtype=torch.int64)
    kernels.penstock_sample_scratch_bytes.restype = ctypes.c_int64
    scratch = torch.empty(kernels.penstock_sample_scratch_bytes(ctypes.c_int64(vocab_size)), dtype=torch.uint8)
    kernels.penstock_sample_rows(
        ctypes.c_void_p(logits.data_ptr()),
        ctypes.c_int64(_DTYPES[logits.dtype]),
        ctypes.c_int64(logits.stride(0) * logits.element_size()),
        ctypes.c_int64(num_rows),
        ctypes.c_int64(vocab_size),
        ctypes.c_void_p(params.data_ptr()),
        ctypes.c_void_p(scratch.data_ptr()),
        ctypes.c_void_p(token_ids.data_ptr()),
    )
    return token_ids
