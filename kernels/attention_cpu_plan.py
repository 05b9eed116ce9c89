"""Cuts one step's attention into few batches of equal shape for the CPU, once per step and kind of layer.

A unit is up to `_MAX_UNIT_TOKENS` consecutive tokens of one row, with the keys that they see: a decoding row is one
unit, a prompt several, each of which reads no key behind its own last token. Units of like size form a bucket and are
computed together, padded to the largest of them: a padded token repeats the unit's last one and gets the same result, a
padded key repeats the row's last block and is masked. So no unit reads a block of another request.

A mask cannot hide a NaN or infinity, and an earlier owner whose numbers overflowed may have left some in a block. So
the step that begins a block and does not fill it clears the slots behind its row's last token.

Legend: T packed tokens, R rows, U units of a bucket, q tokens of a unit, C keys of a unit, n blocks of a unit, H query
heads, K kv heads, D head dim (Dv of the values), S block size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .attention_batch import AttentionBatch
from .cache_write_cpu import cache_rows

# Measured in bfloat16: with 9 heads, units of 64 tokens are as fast as 128 and twice as fast as a whole prompt of 512.
_MAX_UNIT_TOKENS = 64
# A bucket costs about 60 microseconds however small it is: as much as this many multiplications of query and key.
_MAX_WASTE = 2**19
# Scores or gathered numbers of one bucket: larger buckets leave the processor's caches and gain nothing.
_MAX_ELEMENTS = 2**20

IntArray = npt.NDArray[np.int64]


class LayerKind(NamedTuple):
    """Everything about a layer that its plan depends on."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_head_dim: int
    dtype: torch.dtype
    sliding_window: int | None
    key_block_pages: int
    """`pages_per_block` of the keys' cache."""
    value_block_pages: int


@dataclass(slots=True)
class Bucket:
    """Units of one shape, and the memory into which their keys and then their values are gathered."""

    num_units: int
    unit_len: int
    tokens: slice | torch.Tensor
    """The units' U * q packed tokens: a slice where they lie in a row, else [U * q] int64."""
    key_index: torch.Tensor  # [U * K * n] int64: rows of the keys' cache seen as pages
    value_index: torch.Tensor  # [U * K * n] int64: the same for the values; the same tensor if they lie alike
    mask: torch.Tensor | None
    """[U, 1, q, at most C]: 0 or -inf, added to the scores of the last keys; earlier ones are seen. None: all are."""
    key_pages: torch.Tensor  # [U * K * n, S * D]
    keys_t: torch.Tensor  # [U * K, D, C]: `key_pages` as matrices
    value_pages: torch.Tensor  # [U * K * n, S * Dv]
    values: torch.Tensor  # [U * K, C, Dv]: `value_pages` as matrices


@dataclass(slots=True)
class Plan:
    """How layers of one kind attend in one step."""

    cleared_keys: torch.Tensor | None
    """[cleared slots * K] int64, `cache_rows` of the keys' cache; None: the step begins no block that it does not
    fill."""
    cleared_values: torch.Tensor | None
    """The same for the values; the same tensor if they lie alike."""
    buckets: list[Bucket]


class _Units(NamedTuple):
    row: IntArray  # [U]
    token: IntArray  # [U] the first packed token
    length: IntArray  # [U]
    position: IntArray  # [U] of the first token in its row
    first_block: IntArray  # [U] index into the row's blocks: the oldest that is seen
    num_blocks: IntArray  # [U]

    def take(self, indices: list[int]) -> "_Units":
        return _Units(*(field[indices] for field in self))


def make_plan(batch: AttentionBatch, kind: LayerKind) -> Plan:
    """The plan of `batch` for layers of `kind`."""
    cleared_keys = cleared_values = None
    cleared_slots = _cleared_slots(batch)
    if cleared_slots is not None:
        cleared_keys = cache_rows(cleared_slots, kind.num_kv_heads, batch.block_size, kind.key_block_pages)
        cleared_values = cleared_keys
        if kind.value_block_pages != kind.key_block_pages:
            cleared_values = cache_rows(cleared_slots, kind.num_kv_heads, batch.block_size, kind.value_block_pages)

    units = _cut(batch, kind.sliding_window)
    groups = [units.take(indices) for indices in _group(units, batch.block_size, kind)]
    num_pages = [len(group.row) * int(group.num_blocks.max()) * kind.num_kv_heads for group in groups]
    page_tokens = max(num_pages, default=0) * batch.block_size
    keys = torch.empty(page_tokens * kind.head_dim, dtype=kind.dtype)
    # Values may overwrite the keys, which have been used by then: half the memory stays in the processor's caches.
    same = kind.value_head_dim == kind.head_dim
    values = keys if same else torch.empty(page_tokens * kind.value_head_dim, dtype=kind.dtype)
    buckets = [_bucket(group, batch, kind, keys, values) for group in groups]
    return Plan(cleared_keys, cleared_values, buckets)


def _cleared_slots(batch: AttentionBatch) -> torch.Tensor | None:
    """Slots behind the last token of each request whose last block the step begins and does not fill."""
    host, block_size = batch.host, batch.block_size
    used = host.seq_lens % block_size  # [R] tokens in the last block; 0: it is full
    begun = (used > 0) & (used <= np.diff(host.query_start_loc))
    used = used[begun]
    first_slots = host.slot_mapping[host.query_start_loc[1:][begun] - used]  # of the last blocks
    stored = first_slots >= 0
    first_slots, used = first_slots[stored], used[stored]
    if not len(used):
        return None
    offset = np.arange(block_size)
    return torch.from_numpy((first_slots[:, None] + offset)[offset >= used[:, None]])


def _cut(batch: AttentionBatch, sliding_window: int | None) -> _Units:
    """All units of the batch, in order of their tokens."""
    starts = batch.host.query_start_loc.astype(np.int64)
    query_lens = np.diff(starts)  # [R]
    num_units = -(-query_lens // _MAX_UNIT_TOKENS)  # [R]
    row = np.repeat(np.arange(len(query_lens)), num_units)
    unit_in_row = np.arange(len(row)) - np.repeat(np.cumsum(num_units) - num_units, num_units)
    offset = unit_in_row * _MAX_UNIT_TOKENS
    length = np.minimum(_MAX_UNIT_TOKENS, query_lens[row] - offset)
    position = batch.host.seq_lens[row] - query_lens[row] + offset
    oldest = np.zeros_like(position) if sliding_window is None else np.maximum(0, position - sliding_window + 1)
    first_block = oldest // batch.block_size
    num_blocks = (position + length - 1) // batch.block_size + 1 - first_block
    return _Units(row, starts[row] + offset, length, position, first_block, num_blocks)


def _group(units: _Units, block_size: int, kind: LayerKind) -> list[list[int]]:
    """Indices of the units of each bucket: largest first, a bucket ends where padding costs more than a new one."""
    max_waste = _MAX_WASTE // (kind.num_heads * kind.head_dim)
    max_keys = _MAX_ELEMENTS // (kind.num_kv_heads * max(kind.head_dim, kind.value_head_dim))
    max_scores = _MAX_ELEMENTS // kind.num_heads
    num_units = len(units.length)
    if not num_units:
        return []
    # The loop below finds the same, but takes 15 microseconds for 32 rows, and this 4 for any number.
    most_keys = int(units.num_blocks.max()) * block_size
    padded = num_units * int(units.length.max()) * most_keys
    work = int(units.length @ units.num_blocks) * block_size
    if padded - work <= max_waste and padded <= max_scores and num_units * most_keys <= max_keys:
        return [list(range(num_units))]

    lengths: list[int] = units.length.tolist()
    num_keys: list[int] = (units.num_blocks * block_size).tolist()
    groups: list[list[int]] = []
    group: list[int] = []
    unit_len = unit_keys = work = 0
    for index in np.lexsort((-units.num_blocks, -units.length)).tolist():
        length, keys = max(unit_len, lengths[index]), max(unit_keys, num_keys[index])
        work += lengths[index] * num_keys[index]
        size = len(group) + 1
        padded = size * length * keys
        if group and (padded - work > max_waste or padded > max_scores or size * keys > max_keys):
            groups.append(group)
            group, work = [], lengths[index] * num_keys[index]
            length, keys = lengths[index], num_keys[index]
        group.append(index)
        unit_len, unit_keys = length, keys
    groups.append(group)
    return [sorted(group) for group in groups]


def _bucket(units: _Units, batch: AttentionBatch, kind: LayerKind, keys: torch.Tensor, values: torch.Tensor) -> Bucket:
    num_units, unit_len, num_blocks = len(units.row), int(units.length.max()), int(units.num_blocks.max())
    last = (units.length - 1)[:, None]
    token_in_unit = np.minimum(np.arange(unit_len), last)  # [U, q]
    first_block = units.first_block[:, None]
    block = np.minimum(first_block + np.arange(num_blocks), first_block + units.num_blocks[:, None] - 1)  # [U, n]
    block_ids = batch.host.block_table[units.row[:, None], block].astype(np.int64)
    heads = np.arange(kind.num_kv_heads)[:, None]

    def index(block_pages: int) -> torch.Tensor:
        return torch.from_numpy((block_ids[:, None, :] * block_pages + heads).ravel())  # [U * K * n]

    key_index = index(kind.key_block_pages)
    alike = kind.value_block_pages == kind.key_block_pages
    num_pages = len(key_index)

    # Whole blocks, although the mask hides the end of the last one: the matrix product would copy a part of them first.
    num_keys = num_blocks * batch.block_size
    key_positions = first_block * batch.block_size + np.arange(num_keys)  # [U, C]
    positions = units.position[:, None] + token_in_unit  # [U, q]

    def gathered(scratch: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        used = scratch[: num_pages * batch.block_size * head_dim]
        matrices = used.view(num_units * kind.num_kv_heads, num_keys, head_dim)
        return used.view(num_pages, batch.block_size * head_dim), matrices

    key_pages, key_matrices = gathered(keys, kind.head_dim)
    value_pages, value_matrices = gathered(values, kind.value_head_dim)
    return Bucket(
        num_units=num_units,
        unit_len=unit_len,
        tokens=_as_slice((units.token[:, None] + token_in_unit).ravel()),
        key_index=key_index,
        value_index=key_index if alike else index(kind.value_block_pages),
        mask=_mask(positions, key_positions, kind),
        key_pages=key_pages,
        keys_t=key_matrices.transpose(1, 2),
        value_pages=value_pages,
        values=value_matrices,
    )


def _as_slice(tokens: IntArray) -> slice | torch.Tensor:
    first = int(tokens[0])
    if np.array_equal(tokens, np.arange(first, first + len(tokens))):
        return slice(first, first + len(tokens))
    return torch.from_numpy(tokens)


def _mask(positions: IntArray, key_positions: IntArray, kind: LayerKind) -> torch.Tensor | None:
    """The bucket's mask from the positions of the units' tokens [U, q] and keys [U, C]."""
    query, key = positions[:, :, None], key_positions[:, None, :]
    hidden = key > query
    if kind.sliding_window is not None:
        hidden |= key <= query - kind.sliding_window
    columns = np.flatnonzero(hidden.any(axis=(0, 1)))
    if not len(columns):
        return None
    hidden = hidden[:, :, columns[0] :]
    mask = torch.zeros(hidden.shape, dtype=kind.dtype).masked_fill_(torch.from_numpy(hidden), -torch.inf)
    return mask.unsqueeze(1)
