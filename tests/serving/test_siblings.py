"""What further API processes are told of the device worker."""

import asyncio
import pickle
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import IO, cast

import pytest
from fake_engine import until

from penstock.serving.front import FrontConfig
from penstock.serving.settings import Settings
from penstock.serving.siblings import Siblings
from penstock.serving.worker_news import WorkerStarted


class Process:
    """An API process that does nothing."""

    def __init__(self) -> None:
        self.pid = 0
        self.told = b""
        self.stdin = SimpleNamespace(write=self._write)
        self.ended = asyncio.Event()
        self.kill = self.terminate = self.ended.set

    def _write(self, data: bytes) -> None:
        self.told += data

    async def wait(self) -> int:
        await self.ended.wait()
        return 0


async def test_a_process_that_begins_while_the_worker_is_replaced_hears_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    config = FrontConfig(Settings(), [], WorkerStarted(0, "ipc://old"), tmp_path, True, 0.0)
    process = Process()
    with socket.socket() as listener:
        siblings = Siblings(config, [listener], cast(IO[bytes], None))

        async def start(*arguments: object, **options: object) -> Process:
            siblings.tell(WorkerStarted(1, "ipc://new"))
            return process

        monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
        siblings.start()
        await until(lambda: bool(process.told))
        told, _, _ = pickle.loads(process.told[8:])
        assert told.worker == WorkerStarted(1, "ipc://new")
        await siblings.finish()
