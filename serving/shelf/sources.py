"""Turn MODEL arguments into model folders: starters, folders, GGUF files, Hub ids, names of what the home has.

What is fetched or converted is kept under the server's home, so a second start needs neither network nor conversion:

    home/models/<starter name>              unpacked starter models
    home/models/<gguf stem>-<fingerprint>   GGUF files as safetensors
    home/hub/                               snapshots of the Hugging Face Hub, in its own cache layout
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from penstock.scheduler.errors import ModelLoadError
from penstock.scheduler.launch import convert_tokenizer

from .card import ModelCard, read_card
from .conversion import convert_with_bar
from .download import fetch_starter
from .hub import fetch_snapshot
from .registry import scan_home
from .starter import STARTER_MODELS

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_models(arguments: Sequence[str], home: Path, console: Console) -> list[ModelCard]:
    """Find, fetch and convert every model; none named means both starter models.

    Raises:
        ModelLoadError: an argument names no model, two have the same id, or a model cannot be fetched or converted.
    """
    arguments = list(arguments) or list(STARTER_MODELS)
    seen: dict[str, str] = {}
    for argument in arguments:
        name = served_name(argument, home)
        if name in seen:
            raise ModelLoadError(
                f"{seen[name]!r} and {argument!r} would both be served as {name!r}; rename one of their folders"
            )
        seen[name] = argument
    return [_resolve(name, argument, home, console) for name, argument in seen.items()]


def served_name(argument: str, home: Path) -> str:
    """The id under which clients see the model of this argument; a name that is none else may be one of the home's.

    Raises:
        ModelLoadError: the argument names no model.
    """
    if argument in STARTER_MODELS:
        return argument
    path = Path(argument).expanduser()
    if argument and path.is_dir():  # Path("") would be the current folder
        return path.resolve().name
    if path.is_file() and path.suffix.lower() == ".gguf":
        return path.stem.lower()
    if _HUB_ID.fullmatch(argument) and not path.exists() and path.suffix.lower() != ".gguf":
        return argument
    if _in_home(argument, home) is not None:
        return argument
    what = "is a file, but no .gguf file" if path.is_file() else "is neither a folder, a .gguf file nor a Hub id here"
    raise ModelLoadError(
        f"unknown model {argument!r}: it {what}. "
        f"Starter models: {', '.join(STARTER_MODELS)}. Hub ids have the form owner/name."
    )


def _resolve(name: str, argument: str, home: Path, console: Console) -> ModelCard:
    path = Path(argument).expanduser()
    if starter := STARTER_MODELS.get(argument):
        folder = fetch_starter(starter, home, console)
    elif argument and path.is_dir():
        folder = path.resolve()
    elif path.is_file():
        folder = _convert_once(path.resolve(), name, home, console)
    elif (kept := _in_home(argument, home)) is not None:
        folder = kept.folder
    else:
        folder = fetch_snapshot(argument, home / "hub", console)
    card = read_card(name, folder)
    if not (folder / "tokenizer.json").is_file():
        with console.status(f"Converting the tokenizer of {name} (only this once)"):
            convert_tokenizer(folder)
    return card


def _in_home(name: str, home: Path) -> ModelCard | None:
    return next((card for card in scan_home(home) if card.name == name), None)


def _convert_once(source: Path, name: str, home: Path, console: Console) -> Path:
    """The folder made from a GGUF file; the fingerprint tells when the file has changed."""
    state = source.stat()
    fingerprint = hashlib.sha256(f"{source}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = home / "models" / f"{name}-{fingerprint}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert_with_bar(source, folder, source.name, console)
    return folder
