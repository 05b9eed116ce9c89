"""`penstock load`: make a running server load a model, which then stays."""

import argparse
import json

from rich.console import Console

from ..settings import Settings
from .options import make_parser, run_command, server_of


def run(arguments: list[str]) -> int:
    """Load one."""
    parser = make_parser("load", "Load a model into the server's memory, where it stays until it is unloaded.")
    parser.add_argument("model", metavar="MODEL", help="its name, as `penstock ls` shows it")
    parser.add_argument(
        "--ttl", type=int, metavar="SECONDS", help="unload it after so many seconds without requests (default: never)"
    )
    return run_command(parser, arguments, _load)


def _load(options: argparse.Namespace, settings: Settings) -> None:
    body = {"model": options.model} | ({"ttl": options.ttl} if options.ttl is not None else {})
    with Console(stderr=True).status(f"Loading {options.model}"):
        answer = server_of(options, settings).post("/api/v1/models/load", body)
    if options.json:
        print(json.dumps(answer))
    else:
        print(f"{answer['instance_id']} is loaded (in {answer['load_time_seconds']:.1f} s)")
