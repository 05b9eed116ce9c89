"""`penstock pull`: fetch a model into the home; a running server lists it at once.

With --json it prints one line when it knows the size and one when it is done, for the server's own downloads.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

from ..settings import Settings
from ..shelf.hub import snapshot_bytes
from ..shelf.sources import resolve_models
from ..shelf.starter import STARTER_MODELS
from .options import CommandError, make_parser, run_command
from .words import size


def run(arguments: list[str]) -> int:
    """Fetch one."""
    starters = " or ".join(STARTER_MODELS)
    parser = make_parser("pull", "Fetch a model, so that the server can load it.")
    parser.add_argument(
        "model", metavar="MODEL", help=f"a Hugging Face id (owner/name), a .gguf file to convert, or {starters}"
    )
    return run_command(parser, arguments, _pull)


def _pull(options: argparse.Namespace, settings: Settings) -> None:
    if Path(options.model).expanduser().is_dir():
        raise CommandError(f"{options.model} is a folder on this machine already; serve it with `penstock serve`")
    if options.json:
        total = None if options.model in STARTER_MODELS else snapshot_bytes(options.model)
        print(json.dumps({"status": "downloading", "total_size_bytes": total}), flush=True)
    (card,) = resolve_models([options.model], settings.home, Console(stderr=True, quiet=options.json))
    if options.json:
        print(json.dumps({"status": "completed", "model": card.name, "folder": str(card.folder)}))
    else:
        print(f"{card.name} is here: {size(card.size_bytes)} in {card.folder}")
