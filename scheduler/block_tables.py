"""The block tables of one model's running requests, kept from step to step so that only what is new is written.

A request's blocks are known by the seat, a row of the table, that it is given when it is first seen and keeps until
somebody else needs it. A block list only grows while a request runs; when it starts again it has another list.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from .request import BlockId, Request
from .staging import upload


class BlockTables:
    """A table on the host and, for a GPU, its copy there.

    Attributes:
        host: [seats, max_blocks] int32.
        table: the same on the device, always at the same address.
    """

    def __init__(self, num_seats: int, max_blocks: int, device: torch.device) -> None:
        """Room for `num_seats` requests of `max_blocks` blocks."""
        self.host: npt.NDArray[np.int32] = np.zeros((num_seats, max_blocks), np.int32)
        self._device = device
        table = torch.from_numpy(self.host)
        self.table = table if device.type == "cpu" else torch.zeros_like(table, device=device)
        self._seat_of: dict[str, int] = {}
        """By request id, the one seen longest ago first."""
        self._written: list[tuple[list[BlockId], int]] = [([], 0)] * num_seats
        """The list whose blocks are in a seat's row, and how many of them."""
        self._free = list(range(num_seats - 1, -1, -1))

    def seats_of(self, requests: Sequence[Request]) -> npt.NDArray[np.int64]:
        """The rows [R] that hold the block tables of R <= seats requests, with all their blocks, on host and device."""
        seats, changes = [], []
        for request in requests:
            seat = self._seat_of.pop(request.request_id, None)
            if seat is None:
                seat = self._free.pop() if self._free else self._seat_of.pop(next(iter(self._seat_of)))
            self._seat_of[request.request_id] = seat
            seats.append(seat)
            blocks, num_written = self._written[seat]
            if blocks is not request.block_ids:
                num_written = 0
            if num_written != len(request.block_ids):
                changes.append((seat, num_written, request.block_ids[num_written:]))
                self._written[seat] = (request.block_ids, len(request.block_ids))
        self._write(changes)
        return np.array(seats, np.int64)

    def forget(self) -> None:
        """Nobody knows what the device holds, because a step failed: everything is written again."""
        self._written = [([], 0)] * len(self._written)

    def _write(self, changes: list[tuple[int, int, list[BlockId]]]) -> None:
        for seat, start, blocks in changes:
            self.host[seat, start : start + len(blocks)] = blocks
        if changes and self._device.type != "cpu":
            width = self.host.shape[1]
            places = [np.arange(len(blocks)) + (seat * width + start) for seat, start, blocks in changes]
            index = np.concatenate(places).astype(np.int64)
            where, what = upload([index, self.host.reshape(-1)[index]], self._device)
            self.table.view(-1).index_copy_(0, where, what)
