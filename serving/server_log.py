"""The server's log file: what the server logs and what its worker prints, in home/logs, bounded in size.

A server has a file of its own, named after its port, so that several may share a home. `penstock log` shows it.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

LINE_FORMAT = "%(asctime)s server %(levelname)s %(message)s"
_MAX_BYTES = 5_000_000
_NUM_OLD_FILES = 3
_worker_lines = logging.getLogger("penstock.worker-lines")


def configure_logging(level: str) -> None:
    """Log to standard error, from `level` on."""
    logging.basicConfig(level=level.upper(), format=LINE_FORMAT, stream=sys.stderr, force=True)
    for noisy in ("uvicorn.error", "httpx", "httpcore", "asyncio"):  # their "info" is our "debug"
        logging.getLogger(noisy).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)


def log_file(home: Path, port: int) -> Path:
    """Where the server at that port logs."""
    return home / "logs" / f"server-{port}.log"


@contextmanager
def logging_to(file: Path) -> Iterator[IO[bytes]]:
    """Copy the log to `file` for as long as the context lasts.

    Yields:
        A stream for the worker's standard error: its lines reach this process's standard error and the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(file, maxBytes=_MAX_BYTES, backupCount=_NUM_OLD_FILES, encoding="utf-8", delay=True)
    handler.setFormatter(_FileFormatter(LINE_FORMAT))
    _worker_lines.propagate = False
    loggers = (logging.getLogger(), _worker_lines)
    for logger in loggers:
        logger.addHandler(handler)
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0) as stream:
        copier = threading.Thread(target=_copy, args=(reader,), name="worker-lines", daemon=True)
        copier.start()
        yield stream
    copier.join(timeout=5)  # the worker, which holds the other end, has ended by now
    for logger in loggers:
        logger.removeHandler(handler)
    handler.close()


class _FileFormatter(logging.Formatter):
    """The worker's lines are as it wrote them; they have a time already."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.name == _worker_lines.name else super().format(record)


def _copy(reader: int) -> None:
    with open(reader, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            sys.stderr.write(line)
            sys.stderr.flush()
            _worker_lines.warning("%s", line.rstrip("\n"))
