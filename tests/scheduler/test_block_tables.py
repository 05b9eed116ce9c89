"""A row of the table is always what its request's block list says, whoever had the seat before."""

import random

import pytest
import torch

from penstock.scheduler import block_tables
from penstock.scheduler.block_tables import BlockTables
from penstock.scheduler.request import BlockId, Request
from penstock.scheduler.sampling_params import SamplingParams
from penstock.scheduler.staging import upload

CPU = torch.device("cpu")


def make_request(name: str) -> Request:
    return Request(name, "m", [1], SamplingParams(max_tokens=1, seed=0), 0.0)


def test_any_sequence_of_batches_finds_its_blocks() -> None:
    rng = random.Random(0)
    tables = BlockTables(4, 6, CPU)
    requests = [make_request(str(number)) for number in range(9)]
    for _ in range(400):
        for request in requests:
            if rng.random() < 0.1:  # as after a preemption: another list
                request.block_ids = [BlockId(rng.randrange(100))]
            elif len(request.block_ids) < 6 and rng.random() < 0.3:
                request.block_ids += [BlockId(rng.randrange(100))]
        batch = rng.sample(requests, rng.randrange(1, 5))
        seats = tables.seats_of(batch)
        assert len(set(seats.tolist())) == len(batch)
        for request, seat in zip(batch, seats, strict=True):
            assert tables.host[seat, : len(request.block_ids)].tolist() == request.block_ids


def test_only_what_is_new_is_written_unless_the_device_failed() -> None:
    written: list[int] = []

    class Noting(BlockTables):
        def _write(self, changes: list[tuple[int, int, list[BlockId]]]) -> None:
            written.extend(len(blocks) for _, _, blocks in changes)
            super()._write(changes)

    tables, request = Noting(2, 8, CPU), make_request("a")
    request.block_ids = [BlockId(number) for number in range(5)]
    tables.seats_of([request])
    tables.seats_of([request])
    request.block_ids += [BlockId(9)]
    tables.seats_of([request])
    tables.forget()
    tables.seats_of([request])
    assert written == [5, 1, 6]


def test_the_device_has_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the table is apart; here a second one on the CPU stands for it."""
    tables = BlockTables(3, 8, CPU)
    tables.table = torch.zeros(3, 8, dtype=torch.int32)
    tables._device = torch.device("meta")  # anything but a CPU
    monkeypatch.setattr(block_tables, "upload", lambda arrays, device: upload(arrays, CPU))
    requests = [make_request(name) for name in "abc"]
    for step in range(5):
        for number, request in enumerate(requests):
            request.block_ids += [BlockId(10 * step + number)] * (number > 0)
        tables.seats_of(requests[:: step % 2 + 1])
    assert tables.table.tolist() == tables.host.tolist()
    assert tables.host.any()
