"""`penstock unload`: make a running server give the memory of a model, or of all, back."""

import argparse
import json
import sys

from ..settings import Settings
from .client import ServerError
from .options import CommandError, make_parser, run_command, server_of


def run(arguments: list[str]) -> int:
    """Unload one or all."""
    parser = make_parser("unload", "Unload a model from the server's memory; one with requests in flight is kept.")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="its name, as `penstock ps` shows it")
    parser.add_argument("--all", action="store_true", help="unload every model")
    return run_command(parser, arguments, _unload)


def _unload(options: argparse.Namespace, settings: Settings) -> int:
    if options.all == bool(options.model):
        raise CommandError("name one model, or --all")
    server = server_of(options, settings)
    names = [options.model]
    if options.all:
        names = [entry["id"] for entry in server.models() if entry["state"] == "loaded"]
    unloaded, failed = [], False
    for name in names:
        try:
            unloaded.append(server.post("/api/v1/models/unload", {"instance_id": name})["instance_id"])
        except ServerError as error:
            if not options.all:
                raise
            failed = True
            print(f"penstock unload: {error}", file=sys.stderr)
    if options.json:
        print(json.dumps({"unloaded": unloaded}))
    else:
        print("\n".join(f"{name} is unloaded" for name in unloaded) or "nothing was unloaded")
    return int(failed)
