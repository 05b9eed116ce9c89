"""Device workers that certain prompts harm, and that begin within milliseconds: forks of a process that has imported
everything. A server is made to have them by `python frail_worker.py serve ...`, which is the command `penstock`.

A step that computes `DEADLY` ends the worker, as a fault in a kernel would; one that computes `ENDLESS` never ends.
"""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import IO, Any

from penstock.scheduler.config import WorkerConfig
from penstock.scheduler.launch import WorkerProcess, dump_config

DEADLY, ENDLESS = [7, 7, 7, 7], [8, 8, 8, 8]


def run_worker(config: str, lifeline: Connection, log: Any) -> None:
    """In a process of its own: be the worker of a configuration until the lifeline breaks."""
    from penstock.scheduler import worker
    from penstock.scheduler.runner import GenerationRunner

    launch = GenerationRunner.launch

    def launch_or_fail(self: GenerationRunner, batch: Any) -> Any:
        computed = [row.request.token_ids[row.start : row.end][:4] for row in batch.rows]
        if DEADLY in computed:
            os.abort()
        while ENDLESS in computed:
            pass
        return launch(self, batch)

    GenerationRunner.launch = launch_or_fail  # type: ignore[method-assign]
    os.setsid()
    os.dup2(lifeline.fileno(), 0)
    os.dup2(log.detach(), 2)
    sys.argv = ["worker", config]
    with open(0) as sys.stdin:
        worker.main()


class Fork:
    """The part of `subprocess.Popen` that a server uses."""

    def __init__(self, config: WorkerConfig, log: IO[bytes]) -> None:
        context = multiprocessing.get_context("forkserver")
        reader, self.stdin = context.Pipe(duplex=False)
        self._process = context.Process(target=run_worker, args=(dump_config(config), reader, DupFd(log.fileno())))
        self._process.start()
        reader.close()
        self.pid = self._process.pid
        self.terminate, self.kill = self._process.terminate, self._process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return self._process.exitcode


def main() -> int:
    """The real command, whose worker is a fork; the processes' ids are in the file `workers` of its home."""
    from penstock.serving import cli, supervisor

    multiprocessing.set_forkserver_preload(["penstock.scheduler.worker"])

    def start_worker(config: WorkerConfig, stderr: IO[bytes]) -> WorkerProcess:
        fork: Any = Fork(config, stderr)
        with open(os.environ["WORKERS_FILE"], "a") as file:
            print(fork.pid, file=file)
        return WorkerProcess(fork, config)

    supervisor.start_worker = start_worker  # type: ignore[attr-defined,assignment]
    supervisor._PAUSES = (0.0,)  # type: ignore[assignment]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
