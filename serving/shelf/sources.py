"""Turn the MODEL arguments of the command into model folders: starter names, folders, GGUF files and Hub ids.

What is fetched or converted is kept under the server's home, so a second start needs neither network nor conversion:

    home/models/<starter name>              unpacked starter models
    home/models/<gguf stem>-<fingerprint>   GGUF files as safetensors
    home/hub/                               snapshots of the Hugging Face Hub, in its own cache layout
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from penstock.scheduler.config import ModelKind
from penstock.scheduler.errors import ModelLoadError
from penstock.scheduler.launch import convert_tokenizer

from .conversion import convert_with_bar
from .download import fetch_starter
from .hub import fetch_snapshot
from .starter import STARTER_MODELS

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_GENERATION_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_SCORING_HEADS = ("ForSequenceClassification",)
_ENCODERS = ("Model", "ForMaskedLM")
_SENTENCE_TRANSFORMERS_FILES = ("modules.json", "config_sentence_transformers.json")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that is on this machine in the form that the worker loads."""

    name: str
    """The id clients use."""
    folder: Path
    """Has config.json, safetensors and tokenizer.json."""
    kind: ModelKind


def resolve_models(arguments: Sequence[str], home: Path, console: Console) -> list[ResolvedModel]:
    """Find, fetch and convert every model; none named means both starter models.

    Raises:
        ModelLoadError: an argument names no model, two have the same id, or a model cannot be fetched or converted.
    """
    arguments = list(arguments) or list(STARTER_MODELS)
    seen: dict[str, str] = {}
    for argument in arguments:
        name = served_name(argument)
        if name in seen:
            raise ModelLoadError(
                f"{seen[name]!r} and {argument!r} would both be served as {name!r}; rename one of their folders"
            )
        seen[name] = argument
    return [_resolve(name, argument, home, console) for name, argument in seen.items()]


def served_name(argument: str) -> str:
    """The id under which clients see the model of this argument.

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
    what = "is a file, but no .gguf file" if path.is_file() else "is neither a folder, a .gguf file nor a Hub id here"
    raise ModelLoadError(
        f"unknown model {argument!r}: it {what}. "
        f"Starter models: {', '.join(STARTER_MODELS)}. Hub ids have the form owner/name."
    )


def _resolve(name: str, argument: str, home: Path, console: Console) -> ResolvedModel:
    path = Path(argument).expanduser()
    if starter := STARTER_MODELS.get(argument):
        folder = fetch_starter(starter, home, console)
    elif path.is_dir():
        folder = path.resolve()
    elif path.is_file():
        folder = _convert_once(path.resolve(), name, home, console)
    else:
        folder = fetch_snapshot(argument, home / "hub", console)
    kind = model_kind(folder)
    if not any(folder.glob("*.safetensors")):
        raise ModelLoadError(
            f"{folder} has no *.safetensors file; other weight formats are not read, since pickled ones can run code"
        )
    if not (folder / "tokenizer.json").is_file():
        with console.status(f"Converting the tokenizer of {name} (only this once)"):
            convert_tokenizer(folder)
    return ResolvedModel(name, folder, kind)


def _convert_once(source: Path, name: str, home: Path, console: Console) -> Path:
    """The folder made from a GGUF file; the fingerprint tells when the file has changed."""
    state = source.stat()
    fingerprint = hashlib.sha256(f"{source}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = home / "models" / f"{name}-{fingerprint}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert_with_bar(source, folder, source.name, console)
    return folder


def model_kind(folder: Path) -> ModelKind:
    """Whether the model in `folder` generates text, embeds it or scores pairs.

    Raises:
        ModelLoadError: there is no readable config.json, or its architecture does neither.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"{folder} is no model folder: cannot read config.json: {error.strerror}") from error
    except ValueError as error:
        raise ModelLoadError(f"{path} is not JSON: {error}") from error
    architectures = (config.get("architectures") if isinstance(config, dict) else None) or []
    # Cross-encoders have the same files as embedding models; only their architecture tells.
    if any(architecture.endswith(_SCORING_HEADS) for architecture in architectures):
        return "score"
    if any((folder / name).is_file() for name in _SENTENCE_TRANSFORMERS_FILES):
        return "embed"
    if any(architecture.endswith(_GENERATION_HEADS) for architecture in architectures):
        return "generate"
    if any(architecture.endswith(_ENCODERS) for architecture in architectures):
        return "embed"
    raise ModelLoadError(
        f"{path} names the architectures {architectures}, which neither generate text ({', '.join(_GENERATION_HEADS)}) "
        f"nor embed it ({', '.join(_ENCODERS)}) nor score pairs ({', '.join(_SCORING_HEADS)})"
    )
