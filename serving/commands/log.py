"""`penstock log`: the last lines of a server's log, and new ones as they come."""

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from ..server_log import log_file
from ..settings import Settings
from .options import CommandError, make_parser, run_command

_LOOK_SECONDS = 0.25


def run(arguments: list[str]) -> int:
    """Show it."""
    parser = make_parser("log", "Show the log of the server at this port, running or not.")
    parser.add_argument("--lines", "-n", type=int, default=50, metavar="N", help="show the last N lines (default: 50)")
    parser.add_argument("--stream", "-f", action="store_true", help="go on with new lines until Ctrl-C")
    return run_command(parser, arguments, _show)


def _show(options: argparse.Namespace, settings: Settings) -> None:
    path = log_file(settings.home, settings.port)
    if not path.is_file():
        raise CommandError(f"there is no log of a server at port {settings.port}: {path} does not exist")
    with path.open(encoding="utf-8", errors="replace") as lines:
        sys.stdout.writelines(deque(lines, maxlen=max(options.lines, 0)))
        position = lines.tell()
    sys.stdout.flush()
    if options.stream:
        for text in follow(path, position):
            sys.stdout.write(text)
            sys.stdout.flush()


def follow(path: Path, position: int) -> Iterator[str]:
    """What is written to `path` behind `position`, and to the files that take its place; never ends."""
    lines = path.open(encoding="utf-8", errors="replace")
    try:
        lines.seek(position)
        while True:
            if text := lines.read():
                yield text
                continue
            if path.exists() and not os.path.samestat(path.stat(), os.fstat(lines.fileno())):
                lines.close()
                lines = path.open(encoding="utf-8", errors="replace")
                continue
            time.sleep(_LOOK_SECONDS)
    finally:
        lines.close()
