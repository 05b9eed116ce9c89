"""`penstock ls`: the models on this machine, and where a running server has them."""

import argparse
import json
from typing import Any

from rich.table import Table

from ..settings import Settings
from ..shelf.card import ModelCard
from ..shelf.registry import scan_home
from .client import NoServerError
from .options import make_parser, run_command, server_of, stdout
from .words import count, size

_KINDS = {"llm": "chat", "embeddings": "embeddings", "reranker": "reranking"}
_TYPES = {"generate": "llm", "embed": "embeddings", "score": "reranker"}


def run(arguments: list[str]) -> int:
    """List them."""
    return run_command(make_parser("ls", "List the models on this machine."), arguments, _list)


def _list(options: argparse.Namespace, settings: Settings) -> None:
    entries = {card.name: _entry(card) for card in scan_home(settings.home)}
    try:
        served = server_of(options, settings).models()
    except NoServerError:
        served = []
    for entry in served:
        entries[entry["id"]] = entries.get(entry["id"], {}) | entry
    rows = [entries[name] for name in sorted(entries)]
    if options.json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(f"no models in {settings.home}; fetch one with `penstock pull`, such as the starter models")
    else:
        stdout().print(_table(rows, with_state=bool(served)))


def _entry(card: ModelCard) -> dict[str, Any]:
    """What the disk says of a model, in the words of GET /v1/models."""
    return {
        "id": card.name,
        "type": _TYPES[card.kind],
        "architecture": card.architecture,
        "publisher": card.publisher,
        "quantization": card.quantization,
        "num_parameters": card.num_parameters or None,
        "max_model_len": card.max_context_length or None,
        "size_bytes": card.size_bytes,
        "folder": str(card.folder),
        "state": "not-loaded",
    }


def _table(rows: list[dict[str, Any]], *, with_state: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("MODEL", "KIND", "ARCHITECTURE"):
        table.add_column(heading, overflow="fold")
    for heading in ("PARAMETERS", "SIZE", "FORMAT", "CONTEXT"):
        table.add_column(heading, justify="right")
    if with_state:
        table.add_column("STATE")
    for row in rows:
        cells = [row["id"], _KINDS[row["type"]], row["architecture"], count(row["num_parameters"])]
        cells += [size(row["size_bytes"]), row["quantization"] or "–", f"{row['max_model_len'] or 0:,}"]
        table.add_row(*cells, *([row["state"]] if with_state else []))
    return table
