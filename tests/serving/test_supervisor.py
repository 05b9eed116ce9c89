"""What becomes of a device worker's place when the system does not let another one begin."""

import asyncio
import errno
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import pytest
from fake_engine import until

from penstock.scheduler.config import EngineConfig, WorkerConfig
from penstock.scheduler.launch import WorkerProcess
from penstock.serving import supervisor as module
from penstock.serving.engine_client import EngineClient
from penstock.serving.supervisor import Supervisor
from penstock.serving.worker_news import WorkerLost, WorkerNews, WorkerStarted


def starting(*programs: str) -> Callable[[WorkerConfig, Any], WorkerProcess]:
    """Starts one program after the other in place of workers; the system has no room for one without a name."""
    left = iter(programs)

    def start_worker(config: WorkerConfig, stderr: Any) -> WorkerProcess:
        if not (program := next(left)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return WorkerProcess(subprocess.Popen(program.split(), stdin=subprocess.PIPE), config)

    return start_worker


async def test_a_worker_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "start_worker", starting("false", "", "", "cat"))
    monkeypatch.setattr(module, "_PAUSES", (0.0,))
    ready = asyncio.Event()
    ready.set()
    engine = cast(EngineClient, SimpleNamespace(ready=ready, wanted_specs=list))
    config = WorkerConfig("", EngineConfig(), ())
    supervisor = Supervisor(config, tmp_path, cast(IO[bytes], None), watchdog_timeout=0)
    assert supervisor.start().generation == 0
    news: list[WorkerNews] = []
    keeping = asyncio.create_task(supervisor.keep(engine, news.append))
    await until(lambda: any(isinstance(each, WorkerStarted) for each in news))
    refused = WorkerLost("could not be started again: [Errno 28] No space left on device", is_hopeless=True)
    assert news[0] == WorkerLost("ended with status 1")
    assert news[1:3] == [refused] * 2
    assert isinstance(news[3], WorkerStarted) and news[3].generation == 1
    keeping.cancel()
    supervisor.stop()
