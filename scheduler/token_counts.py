"""Counts on the device of the tokens that penalised requests have seen, each updated there by what a step samples.

So a request's next step needs nothing of this one from the host. A request's row of the table is written when it first
samples, and again when it comes back after somebody else needed the row.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from penstock.kernels.change_logits import IN_OUTPUT, IN_PROMPT

from .request import Request, RequestStatus
from .staging import upload

_FIRST_ROWS = 4

# R rows of a step, P of them with penalties, V vocabulary


class TokenCounts:
    """The table of one model.

    Attributes:
        table: [rows, V] int32 on the device, as `LogitChanges.counts`; as many rows as running requests have needed.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.table = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._row_of: dict[Request, int] = {}
        self._num_counted: dict[Request, int] = {}
        """Tokens of each of these requests that its row counts."""
        self._free: list[int] = []

    def rows_of(self, requests: Sequence[Request]) -> npt.NDArray[np.int32]:
        """Rows [R] of requests that are about to sample, with all their tokens counted; -1 for those without penalties.

        `add` has to follow.
        """
        rows = np.full(len(requests), -1, np.int32)
        missing = []
        for index, request in enumerate(requests):
            if request.sampling.has_penalties:
                if request not in self._row_of:
                    self._row_of[request] = self._take_row(requests)
                    self._num_counted[request] = -1
                if self._num_counted[request] != request.num_tokens:
                    missing.append(request)
                rows[index] = self._row_of[request]
        if missing:
            self._write(missing)
        return rows

    def add(self, requests: Sequence[Request], token_ids: torch.Tensor) -> None:
        """Count the tokens [R] int64, on the device, that these requests have just sampled."""
        penalized = [index for index, request in enumerate(requests) if request.sampling.has_penalties]
        if not penalized:
            return
        for index in penalized:
            self._num_counted[requests[index]] = requests[index].num_tokens + 1
        rows = [self._row_of[requests[index]] for index in penalized]
        where, starts = upload(
            [np.array(penalized, np.int64), np.array(rows, np.int64) * self.table.shape[1]], self.table.device
        )
        places = starts + token_ids.index_select(0, where)  # [P]
        self.table.view(-1).index_add_(0, places, torch.full_like(places, IN_OUTPUT, dtype=torch.int32))

    def _write(self, requests: Sequence[Request]) -> None:
        """Count from the start."""
        counts = np.stack([self._count(request) for request in requests])
        rows = np.array([self._row_of[request] for request in requests], np.int64)
        self.table.index_copy_(0, *upload([rows, counts], self.table.device))

    def _count(self, request: Request) -> npt.NDArray[np.int32]:
        assert not request.num_pending_tokens, "tokens that only the device knows were counted there"
        vocab_size = self.table.shape[1]
        tokens = np.array(request.token_ids, np.int64)
        prompt, output = np.split(tokens, [len(request.prompt_token_ids)])
        # Ids outside the vocabulary have no logit to change.
        prompt, output = (part[(part >= 0) & (part < vocab_size)] for part in (prompt, output))
        counts = np.bincount(output, minlength=vocab_size) * IN_OUTPUT
        counts[prompt] += IN_PROMPT  # repeated indices count once
        return counts.astype(np.int32)

    def _take_row(self, in_step: Sequence[Request]) -> int:
        """A row for one more request of a step."""
        if not self._free:
            for request in self._row_of.keys() - set(in_step):
                if request.status is not RequestStatus.RUNNING:
                    self._free.append(self._row_of.pop(request))
                    del self._num_counted[request]
        if not self._free:
            num_rows = len(self.table)
            num_new = max(_FIRST_ROWS, num_rows)
            self.table = torch.cat((self.table, self.table.new_zeros(num_new, self.table.shape[1])))
            self._free += range(num_rows, num_rows + num_new)
        return self._free.pop()
