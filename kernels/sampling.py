"""Chooses one token a row from a batch of logits, each row by its own parameters, without a transfer to the host.

The draw is an inverse transform, in vocabulary order, of one uniform number a row. One a row and not one a token, as
Gumbel-max wants, because hashing a whole vocabulary costs more on a CPU than all the rest. Vocabulary order and not
rank order, because two nearly equal logits that swap ranks then move no other token's interval.

Legend: R rows, V vocabulary.
"""

import numpy as np
import numpy.typing as npt
import torch

from .checks import check_dtype, check_shape
from .native import library
from .sampling_native import sample_rows_native
from .sampling_torch import sample_rows_torch, sanitize

MIN_LOGPROB = -9999.0  # OpenAI's figure for "very unlikely"; JSON has no minus infinity
PARAMS = ("temperature", "top_k", "top_p", "min_p", "uniform")
"""Columns of the parameters of `sample_rows`."""


def sample_rows(logits: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
    """Choose one token a row: the argmax, or a draw from its top-k, of those the top-p, of those the min-p tokens.

    All three filters keep a prefix of the tokens in order of falling logits, equal ones by rising id; the shortest
    prefix decides, and holds one token at least. NaN counts as -inf, +inf as the largest number. A row's token depends
    on nothing but its own logits and parameters. Nothing is read back from the device, and no shape depends on the
    data, so a graph can hold the call.

    Args:
        logits: [R, V] of any float dtype, contiguous in V; kept.
        params: [R, 5] float64 on the same device, in the order of `PARAMS`:
            temperature, 0 for the argmax;
            top_k, an integer >= 1, V or more keeps all;
            top_p in (0, 1], the smallest prefix of at least this share of what top_k keeps;
            min_p in [0, 1], relative to the likeliest token;
            uniform in [0, 1), see `keyed_uniforms`.

    Returns:
        [R] int64 ids on the same device; 0 for a row without any finite logit.

    Raises:
        ValueError: shapes or types do not fit.
    """
    check_shape("params", params, (len(logits), len(PARAMS)))
    check_dtype("params", params, torch.float64)
    if logits.device.type != "cpu":
        from .sampling_triton import sample_rows_triton

        return sample_rows_triton(logits, params)
    kernels = library()
    return sample_rows_torch(logits, params) if kernels is None else sample_rows_native(kernels, logits, params)


def keyed_uniforms(seeds: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) that are a function of (seed, position) alone, bit-equal on every platform.

    Each is one output of the SplitMix64 generator (Steele, Lea and Flood, OOPSLA 2014) whose state is the position's
    step of the sequence that the mixed seed starts, so nearby seeds and positions are unrelated.

    Args:
        seeds: [R], any 64-bit integers.
        positions: [R], indices of the tokens to draw in their sequences.

    Returns:
        [R] multiples of 2**-53.
    """
    step = np.uint64(0x9E3779B97F4A7C15)
    start = _mix(seeds.astype(np.uint64) + step)
    mixed = _mix(start + positions.astype(np.uint64) * step)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def top_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Natural log probabilities of given and of the likeliest tokens.

    Args:
        logits: [R, V] of any float dtype, NaN and infinities as in `sample_rows`.
        token_ids: [R] int64, the given tokens.
        num_top: how many of the likeliest, 0 to V.

    Returns:
        Log probabilities [R] of `token_ids`, ids [R, num_top] and log probabilities [R, num_top] of the likeliest in
        falling order; float32, none below `MIN_LOGPROB`.
    """
    logits = sanitize(logits)
    normaliser = logits.logsumexp(dim=1, keepdim=True)  # [R, 1]
    chosen = logits.gather(1, token_ids.unsqueeze(1)) - normaliser
    values, ids = logits.topk(num_top, dim=1)
    bounded = [_bounded(logprobs) for logprobs in (chosen.squeeze(1), values - normaliser)]
    return bounded[0], ids, bounded[1]


def _bounded(logprobs: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(logprobs, nan=MIN_LOGPROB).clamp(min=MIN_LOGPROB)
