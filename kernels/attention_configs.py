"""How the Triton attention kernels cut their work, by head dim, group and dtype: plain data, with the reasons.

Nothing is tuned while serving: a kernel that times itself at its first call stalls that request and every graph that
is captured then. The numbers follow from the sizes of sm_90 (227 KB of shared memory and 65536 registers a processor);
no GPU has timed them yet, and `benchmarks/attention_tuning.py` is how one does.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch

MAX_SHARED = 227 * 1024  # bytes that the programs on one processor of sm_90 share


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How rows with one token are computed."""

    tile: int
    """Keys of one matrix product."""
    min_tiles: int
    """Tiles that a program takes at least: fewer are not worth its start and its part of the combination."""
    programs_per_processor: int
    """So many fit side by side: one computes while the other waits for memory."""
    num_warps: int
    num_stages: int
    """Loads are issued so many iterations ahead; half of it goes to the block ids, by which the others are found."""


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """How rows with several tokens are computed."""

    block_m: int
    """Rows of a query tile: tokens times the query heads of a kv head."""
    block_n: int
    """Keys of one matrix product."""
    num_warps: int
    num_stages: int


# By the padded head dim and the bytes of a cached number. A tile of keys and one of values take 32 KB at 64 x 128 x 2
# bytes. Of five stages the block ids take two, so that two programs hold 128 KB under way on each processor, several
# times what latency times its bandwidth asks for (4.3 TB/s / 132 x 0.7 us = 23 KB); with three stages it is 64 KB.
# Numbers of 8 bits are widened in registers: 128 of them a tile spill at 4 warps.
_DECODE = {
    (16, 2): DecodeConfig(128, 2, 2, 4, 5),
    (32, 2): DecodeConfig(128, 2, 2, 4, 5),
    (64, 2): DecodeConfig(128, 2, 2, 4, 5),
    (128, 2): DecodeConfig(64, 2, 2, 4, 5),
    (256, 2): DecodeConfig(32, 4, 2, 4, 5),
    (64, 1): DecodeConfig(128, 2, 2, 4, 5),
    (128, 1): DecodeConfig(64, 2, 2, 4, 5),
    (256, 1): DecodeConfig(32, 4, 2, 4, 5),
}
# float32, which is for tests, and head dims beyond 256: what fits.
_DECODE_DEFAULT = DecodeConfig(32, 4, 1, 4, 2)

# The same. wgmma wants 64 rows for each group of four warps, so that 128 rows take 8. For each 16 of the head dim its
# operands take 32 cycles out of shared memory with 64 keys, as long as the product itself, and with 128 keys 48 of 64.
# At a head dim of 256 the accumulator alone takes 128 registers a thread, and only 32 keys fit beside it without
# spilling; widening numbers of 8 bits needs room too.
_PREFILL = {
    (16, 2): PrefillConfig(128, 64, 4, 2),
    (32, 2): PrefillConfig(128, 64, 4, 2),
    (64, 2): PrefillConfig(128, 128, 8, 3),
    (128, 2): PrefillConfig(128, 128, 8, 3),
    (256, 2): PrefillConfig(128, 32, 8, 2),
    (64, 1): PrefillConfig(128, 64, 8, 3),
    (128, 1): PrefillConfig(128, 64, 8, 3),
    (256, 1): PrefillConfig(128, 32, 8, 2),
}
_PREFILL_DEFAULT = PrefillConfig(32, 32, 4, 2)


def decode_config(head_dim: int, dtype: torch.dtype) -> DecodeConfig:
    """How rows with one token are computed.

    The group does not matter: up to 16 query heads of a kv head are one matrix product anyway.

    Args:
        head_dim: the larger of the keys' and the values'.
        dtype: of the cache.
    """
    return _DECODE.get((padded(head_dim), dtype.itemsize), _DECODE_DEFAULT)


def prefill_config(head_dim: int, group: int, dtype: torch.dtype) -> PrefillConfig:
    """How rows with several tokens are computed.

    Args:
        head_dim: the larger of the keys' and the values'.
        group: query heads of a kv head.
        dtype: of the cache.
    """
    config = _PREFILL.get((padded(head_dim), dtype.itemsize), _PREFILL_DEFAULT)
    return replace(config, block_m=max(config.block_m, _next_power_of_2(group)))


def decode_candidates(head_dim: int, dtype: torch.dtype) -> Iterator[DecodeConfig]:
    """The configurations that are worth timing on a device; those that do not fit into it are left out."""
    pair = 2 * padded(head_dim) * dtype.itemsize  # bytes of one key and one value
    for tile, min_tiles, programs, warps, stages in product((32, 64, 128), (1, 2, 4), (1, 2, 3), (4, 8), (3, 5, 7)):
        if programs * (stages - 1) // 2 * tile * pair <= MAX_SHARED:
            yield DecodeConfig(tile, min_tiles, programs, warps, stages)


def prefill_candidates(head_dim: int, group: int, dtype: torch.dtype) -> Iterator[PrefillConfig]:
    """The same for rows with several tokens."""
    size = padded(head_dim)
    for block_m, block_n, warps, stages in product((64, 128, 256), (32, 64, 128), (4, 8), (2, 3, 4)):
        # Queries in 16 bits, and the keys and values of two tiles.
        if block_m >= group and block_m * size * 2 + 4 * block_n * size * dtype.itemsize <= MAX_SHARED:
            yield PrefillConfig(block_m, block_n, warps, stages)


def padded(head_dim: int) -> int:
    """A head dim as the kernels compute with it: a power of two, at least the 16 of a matrix instruction."""
    return max(16, _next_power_of_2(head_dim))


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
