"""What one step's attention layers share: which requests the packed tokens belong to and where their keys lie.

Legend: T packed tokens, R requests (rows).
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class HostBatch:
    """The batch's tensors as numpy arrays, for planning on the host."""

    block_table: npt.NDArray[np.int32]  # [R, max_blocks]
    seq_lens: npt.NDArray[np.int32]  # [R]
    query_start_loc: npt.NDArray[np.int32]  # [R + 1]
    slot_mapping: npt.NDArray[np.int64]  # [T]


@dataclass(slots=True)
class AttentionBatch:
    """Metadata of one step, built once and read by every layer.

    Row r owns the packed tokens `query_start_loc[r] : query_start_loc[r + 1]`: its q newest tokens. The last of them
    sees `seq_lens[r]` keys, so token j of the row is at position `seq_lens[r] - q + j`. A captured graph may carry
    padding rows: their `seq_lens` is 0, their slots are -1, and their output is zero.
    """

    block_table: torch.Tensor  # [R, max_blocks] int32: block of the row's positions [i * S, (i + 1) * S)
    seq_lens: torch.Tensor  # [R] int32
    query_start_loc: torch.Tensor  # [R + 1] int32
    slot_mapping: torch.Tensor  # [T] int64: block * S + offset of each token's key and value; -1: not stored
    num_decodes: int
    """The first `num_decodes` rows have exactly one token; the others any number."""
    max_query_len: int
    block_size: int
    host: HostBatch
    plans: dict[Hashable, Any] = field(default_factory=dict)
    """What an implementation works out in the step's first layer and reuses in the others."""

    @classmethod
    def build(
        cls,
        block_tables: list[list[int]],
        seq_lens: list[int],
        query_lens: list[int],
        slot_mapping: npt.NDArray[np.int64],
        block_size: int,
        device: torch.device | str,
    ) -> "AttentionBatch":
        """Pack the lists of R rows into tensors on `device`.

        Args:
            block_tables: each row's block ids in order of position; more than needed do no harm.
            seq_lens: keys that each row's last token sees, itself included.
            query_lens: tokens of each row.
            slot_mapping: [T] cache slot of each token.
            block_size: tokens in a block.
            device: where the attention runs.

        Raises:
            ValueError: a row has more tokens than keys or fewer blocks than keys need, or T is not the sum of
                `query_lens`.
        """
        lengths = np.array(seq_lens, dtype=np.int32)
        query_start_loc = np.zeros(len(query_lens) + 1, dtype=np.int32)
        np.cumsum(query_lens, out=query_start_loc[1:])
        _check_rows(block_tables, seq_lens, query_lens, len(slot_mapping), block_size)
        table = np.zeros((len(block_tables), max(map(len, block_tables), default=0)), dtype=np.int32)
        for row, blocks in enumerate(block_tables):
            table[row, : len(blocks)] = blocks
        host = HostBatch(table, lengths, query_start_loc, slot_mapping)

        def to_device(array: npt.NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        return cls(
            block_table=to_device(table),
            seq_lens=to_device(lengths),
            query_start_loc=to_device(query_start_loc),
            slot_mapping=to_device(slot_mapping),
            num_decodes=next((row for row, length in enumerate(query_lens) if length != 1), len(query_lens)),
            max_query_len=max(query_lens, default=0),
            block_size=block_size,
            host=host,
        )


def _check_rows(
    block_tables: list[list[int]], seq_lens: list[int], query_lens: list[int], num_slots: int, block_size: int
) -> None:
    for row, (blocks, seq_len, query_len) in enumerate(zip(block_tables, seq_lens, query_lens, strict=True)):
        if query_len > seq_len:
            raise ValueError(f"row {row} has {query_len} query tokens; they must be among its {seq_len} keys")
        if len(blocks) * block_size < seq_len:
            raise ValueError(
                f"row {row} has {len(blocks)} blocks of {block_size} for {seq_len} keys; "
                f"it must have at least {-(-seq_len // block_size)}"
            )
    if num_slots != sum(query_lens):
        raise ValueError(f"slot_mapping has {num_slots} slots; it must have one for each of {sum(query_lens)} tokens")
