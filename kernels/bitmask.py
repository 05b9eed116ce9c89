"""Makes the tokens impossible that a grammar forbids, for the rows of a batch that have one.

A mask has one bit a token, in words of 32 with the lowest bit first, as the grammar library fills it. Legend: R rows of
logits, N rows with a mask, V vocabulary, W = ceil(V / 32) words or more.
"""

import numpy as np
import torch

from .checks import check_dtype, check_shape

_BITS_OF_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")  # [256, 8]
_ADDED = np.where(_BITS_OF_BYTES == 1, 0, -np.inf).astype(np.float32)  # what a byte of a mask adds to eight logits


def apply_bitmask(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    """Set logits to -inf, in place, where a mask has a 0.

    Args:
        logits: [R, V] float32, contiguous in V, none +inf.
        rows: [N] int64, the row of each mask, none twice.
        bits: [N, W] int32 on the same device; bits beyond V are not read.

    Raises:
        ValueError: shapes or types do not fit.
    """
    check_dtype("logits", logits, torch.float32)
    check_dtype("bits", bits, torch.int32)
    check_shape("bits", bits, (len(rows), None))
    if bits.shape[1] * 32 < logits.shape[1]:
        raise ValueError(f"bits has {bits.shape[1]} words, too few for {logits.shape[1]} tokens")
    if logits.device.type == "cpu":
        _apply_cpu(logits, rows, bits)
    else:
        from .bitmask_triton import apply_bitmask_triton

        apply_bitmask_triton(logits, rows, bits)


def apply_bitmask_reference(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    """The same, one plain operation after the other."""
    token = torch.arange(logits.shape[1], device=logits.device)
    allowed = (bits[:, token // 32] >> (token % 32)) & 1  # [N, V]
    logits[rows] = logits[rows].masked_fill(allowed == 0, -torch.inf)


def _apply_cpu(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    # Eight logits a byte are looked up and added: at [32, 49152] on one thread 0.4 ms, and masked_fill_ takes 6 ms.
    added = torch.from_numpy(_ADDED.take(bits.numpy().view(np.uint8), axis=0)).view(len(rows), -1)  # [N, W * 32]
    logits.index_add_(0, rows, added[:, : logits.shape[1]])
