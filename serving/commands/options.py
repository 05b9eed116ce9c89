"""What the commands have in common: where the server is, where the models are, and how to fail in one line."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from penstock.scheduler.errors import ModelLoadError

from ..settings import Settings, SettingsError, load_settings
from .client import API_KEY_VARIABLE, Server, ServerError


class CommandError(Exception):
    """A command cannot do what it was asked; the message is for people."""


def make_parser(name: str, description: str, *, talks: bool = True) -> argparse.ArgumentParser:
    """The parser of one command, with the options that all commands have, or all that talk to a server."""
    parser = argparse.ArgumentParser(prog=f"penstock {name}", description=description, allow_abbrev=False)
    if talks:
        parser.add_argument("--host", metavar="ADDRESS", help="where the server listens (default: as `penstock serve`)")
        parser.add_argument("--port", metavar="N", help="its port (default: as `penstock serve`)")
        parser.add_argument(
            "--api-key",
            default=os.environ.get(API_KEY_VARIABLE, ""),
            metavar="KEY",
            help=f"for a server that has keys (default: ${API_KEY_VARIABLE}, which others on this machine cannot see)",
        )
    parser.add_argument("--home", metavar="FOLDER", help="where models are kept (default: as `penstock serve`)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run_command(
    parser: argparse.ArgumentParser,
    arguments: list[str],
    work: Callable[[argparse.Namespace, Settings], int | None],
) -> int:
    """Parse, work, and turn every foreseen error into one line; returns the exit status."""
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:  # argparse has printed the help, or what is wrong
        return 2 if end.code else 0
    try:
        settings = load_settings(_flags(options))
    except SettingsError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    try:
        return work(options, settings) or 0
    except (CommandError, ServerError, ModelLoadError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _flags(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of `penstock serve` that the command line gives; environment and file count as they do there."""
    given = {name: getattr(options, name, None) for name in ("host", "port", "home")}
    # These two need each other, and neither means anything to a command.
    return {name: value for name, value in given.items() if value is not None} | {
        "models": [],
        "served_model_name": "",
    }


def server_of(options: argparse.Namespace, settings: Settings) -> Server:
    """The server that these settings would start, called with the options' key."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return Server(host, settings.port, options.api_key)


def stdout() -> Console:
    """Where results go: wide enough for whole rows if nobody looks at it."""
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)
