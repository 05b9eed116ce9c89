"""`penstock serve` over a worker without a device: arguments as those of `penstock`, the worker is `echo_worker.py`."""

import subprocess
import sys
from pathlib import Path
from typing import IO

from penstock.scheduler.config import WorkerConfig
from penstock.scheduler.launch import WorkerProcess, dump_config
from penstock.serving import cli, supervisor

ECHO_WORKER = Path(__file__).with_name("echo_worker.py")


def start_echo_worker(config: WorkerConfig, *, stderr: IO[bytes] | None = None) -> WorkerProcess:
    command = [sys.executable, str(ECHO_WORKER), dump_config(config)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=stderr, start_new_session=True)
    return WorkerProcess(process, config)


if __name__ == "__main__":
    supervisor.start_worker = start_echo_worker
    sys.exit(cli.main())
