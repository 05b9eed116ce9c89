"""Start a real `penstock serve` on a free port for a test, wait until it is ready, stop it, show its log on failure."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from types import TracebackType

import psutil

_READY = re.compile(r"^Ready at (http://\S+)/v1 ", re.MULTILINE)


class ServerStartError(Exception):
    """The server ended, or was not ready in time; the message holds its log."""


class ServerProcess:
    """A server process as a context manager.

    Args:
        models: MODEL arguments; none means the starter models.
        home: PENSTOCK_HOME of the server; None leaves the environment's.
        arguments: more flags.
        environment: variables on top of this process's.
        timeout: seconds until it must be ready.
    """

    def __init__(
        self,
        models: list[str] | None = None,
        *,
        home: Path | None = None,
        arguments: list[str] | None = None,
        environment: dict[str, str] | None = None,
        timeout: float = 120.0,
    ) -> None:
        self._command = [sys.executable, "-m", "penstock.serving.cli", "serve", *(models or []), "--port", "0"]
        self._command += [*(["--home", str(home)] if home else []), *(arguments or [])]
        self._environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | (environment or {})
        self._timeout = timeout
        handle, name = tempfile.mkstemp(prefix="penstock-test-", suffix=".log")
        os.close(handle)
        self._log_file = Path(name)
        weakref.finalize(self, self._log_file.unlink)
        self._process: subprocess.Popen[bytes] | None = None
        self.base_url = ""
        """Without /v1; set when the server is ready."""

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The front's process."""
        assert self._process is not None, "the server was not started"
        return self._process

    @property
    def pid(self) -> int:
        """The front's process id."""
        return self.process.pid

    @property
    def worker_pid(self) -> int:
        """The device worker's process id."""
        return next(
            child.pid for child in psutil.Process(self.pid).children() if "penstock.scheduler.worker" in child.cmdline()
        )

    @property
    def log(self) -> str:
        """Everything the server and its worker have printed."""
        return self._log_file.read_text(errors="replace")

    def spawn(self) -> "ServerProcess":
        """Start and return at once."""
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )
        return self

    def wait_until_ready(self) -> "ServerProcess":
        """Return when the server says where it is.

        Raises:
            ServerStartError: it ended or took too long.
        """
        deadline = time.monotonic() + self._timeout
        while (ready := _READY.search(self.log)) is None:
            if self.process.poll() is not None:
                raise ServerStartError(f"the server ended with status {self.process.returncode}:\n{self.log}")
            if time.monotonic() > deadline:
                log = self.log
                self.stop(signal.SIGKILL)
                raise ServerStartError(f"the server was not ready after {self._timeout} s:\n{log}")
            time.sleep(0.05)
        self.base_url = ready.group(1)
        return self

    def stop(self, signum: int = signal.SIGTERM, timeout: float = 30.0) -> int:
        """Send a signal, wait for the end and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self) -> "ServerProcess":
        return self.spawn().wait_until_ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if error is not None:
            print(f"log of the server:\n{self.log}")  # pytest shows it with the failure
