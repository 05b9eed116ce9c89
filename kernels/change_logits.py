"""Everything that changes logits before sampling, in one pass: bias, penalties, forbidden tokens, a grammar's mask.

What the penalties need, how often each token came, is a table on the device that is kept up to date there: the host
need not know the tokens.

Legend: R rows, V vocabulary, E entries of all rows, S rows of the table of counts, M masks, W = ceil(V / 32) words of a
mask or more.
"""

from dataclasses import dataclass

import torch

from .checks import check_dtype, check_shape
from .native import library
from .sampling_torch import sanitize

IN_PROMPT, IN_OUTPUT = 1, 2
"""What one token adds to its count: the lowest bit tells that the prompt has it, the others how often the output."""


@dataclass(frozen=True, slots=True)
class LogitChanges:
    """What to change in R rows of logits; all on one device."""

    entry_starts: torch.Tensor  # [R + 1] int32: entries start to start of the next are a row's
    entry_ids: torch.Tensor  # [E] int32 token ids, ascending in each row, none twice
    entry_values: torch.Tensor  # [E] float32, added to their logits; -inf forbids a token
    count_rows: torch.Tensor  # [R] int32, the row's place in `counts`; -1: it has no penalties
    penalties: torch.Tensor  # [R, 3] float32: repetition > 0, presence, frequency
    counts: torch.Tensor  # [S, V] int32, sums of IN_PROMPT and IN_OUTPUT
    mask_rows: torch.Tensor  # [R] int32, the row's place in `bits`; -1: it has no mask
    bits: torch.Tensor  # [M, W] int32, a 1 for each allowed token, lowest bit first; those beyond V are not read


def change_logits(logits: torch.Tensor, changes: LogitChanges) -> torch.Tensor:
    """Logits as the requests want them sampled.

    In this order: NaN becomes -inf and +inf the largest number; entries are added; of seen tokens, positive logits are
    divided by the repetition penalty (Keskar et al., CTRL, 2019) and others multiplied, and OpenAI's
    `frequency * count + presence * (count > 0)` is subtracted, which counts the output only; what a mask does not allow
    becomes -inf. Nothing is read back from the device.

    Args:
        logits: [R, V] of any float dtype, contiguous in V; kept.
        changes: for each row.

    Returns:
        [R, V] float32.

    Raises:
        ValueError: shapes or types do not fit.
    """
    _check(logits, changes)
    if logits.device.type != "cpu":
        from .change_logits_triton import change_logits_triton

        return change_logits_triton(logits, changes)
    kernels = library()
    if kernels is None:
        return change_logits_torch(logits, changes)
    from .change_logits_native import change_logits_native

    return change_logits_native(kernels, logits, changes)


def change_logits_torch(logits: torch.Tensor, changes: LogitChanges) -> torch.Tensor:
    """The reference, and what a processor without native kernels runs."""
    values = sanitize(logits)
    row = torch.arange(len(values), device=values.device)
    entry_rows = row.repeat_interleave(changes.entry_starts.diff())  # [E]
    values[entry_rows, changes.entry_ids.long()] += changes.entry_values
    penalized = row[changes.count_rows >= 0]
    if len(penalized):
        counts = changes.counts[changes.count_rows[penalized].long()]  # [penalized, V]
        repetition, presence, frequency = changes.penalties[penalized].unsqueeze(2).unbind(1)  # [penalized, 1] each
        seen = values[penalized]
        seen = torch.where(seen > 0, seen / repetition, seen * repetition)
        num_output = counts // IN_OUTPUT
        seen -= frequency * num_output + presence * (num_output > 0)
        values[penalized] = torch.where(counts > 0, seen, values[penalized])
    masked = row[changes.mask_rows >= 0]
    if len(masked):
        token = torch.arange(values.shape[1], device=values.device)
        words = changes.bits[changes.mask_rows[masked].long()]  # [masked, W]
        allowed = (words[:, token // 32] >> (token % 32)) & 1  # [masked, V]
        values[masked] = values[masked].masked_fill(allowed == 0, -torch.inf)
    return values


def _check(logits: torch.Tensor, changes: LogitChanges) -> None:
    num_rows, vocab_size = logits.shape
    check_shape("entry_starts", changes.entry_starts, (num_rows + 1,))
    check_shape("entry_values", changes.entry_values, tuple(changes.entry_ids.shape))
    check_shape("count_rows", changes.count_rows, (num_rows,))
    check_shape("penalties", changes.penalties, (num_rows, 3))
    check_shape("counts", changes.counts, (None, vocab_size))
    check_shape("mask_rows", changes.mask_rows, (num_rows,))
    for name in ("entry_starts", "entry_ids", "count_rows", "counts", "mask_rows", "bits"):
        check_dtype(name, getattr(changes, name), torch.int32)
    for name in ("entry_values", "penalties"):
        check_dtype(name, getattr(changes, name), torch.float32)
    if changes.bits.shape[1] * 32 < vocab_size:
        raise ValueError(f"bits has {changes.bits.shape[1]} words, too few for {vocab_size} tokens")
