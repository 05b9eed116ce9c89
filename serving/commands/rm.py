"""`penstock rm`: delete a model that Penstock has fetched or converted."""

import argparse
import json
import shutil
import sys
from pathlib import Path

from ..settings import Settings
from ..shelf.registry import scan_home, stored_folders
from .client import NoServerError
from .options import CommandError, make_parser, run_command, server_of
from .words import size


def run(arguments: list[str]) -> int:
    """Delete one."""
    parser = make_parser("rm", "Delete a model from this machine. Folders outside of the home are never touched.")
    parser.add_argument("model", metavar="MODEL", help="its name, as `penstock ls` shows it")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    return run_command(parser, arguments, _remove)


def _remove(options: argparse.Namespace, settings: Settings) -> int:
    name = options.model
    card = next((card for card in scan_home(settings.home) if card.name == name), None)
    if card is None:
        raise CommandError(f"there is no model {name!r} in {settings.home}; `penstock ls` lists those that are there")
    _check_unused(options, settings)
    if not options.yes and not _confirm(f"Delete {name} ({size(card.size_bytes)})?"):
        print("nothing was deleted", file=sys.stderr)
        return 1
    paths = stored_folders(settings.home, name)
    for path in paths:
        _delete(path)
    print(json.dumps({"deleted": [str(path) for path in paths]}) if options.json else f"{name} is deleted")
    return 0


def _check_unused(options: argparse.Namespace, settings: Settings) -> None:
    try:
        states = {entry["id"]: entry["state"] for entry in server_of(options, settings).models()}
    except NoServerError:
        return
    name = options.model
    if states.get(name, "not-loaded") != "not-loaded":
        raise CommandError(f"a running server uses {name}; unload it first with `penstock unload {name}`")


def _confirm(question: str) -> bool:
    if not sys.stdin.isatty():
        raise CommandError("there is nobody to ask; say --yes")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _delete(path: Path) -> None:
    """Delete a file or a folder; a folder leaves its place at once, so that nobody meets half of it."""
    if path.is_dir() and not path.is_symlink():  # what a link leads to is not the home's
        condemned = path.with_name(f".{path.name}.deleted")
        path.rename(condemned)
        shutil.rmtree(condemned)
    else:
        path.unlink()
