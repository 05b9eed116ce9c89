"""`penstock ps`: the models that a running server has in memory, and for how long."""

import argparse
import json
from typing import Any

from rich.table import Table

from ..settings import Settings
from .options import make_parser, run_command, server_of, stdout
from .words import count, duration, size


def run(arguments: list[str]) -> int:
    """List them."""
    return run_command(make_parser("ps", "List the models in the server's memory."), arguments, _list)


def _list(options: argparse.Namespace, settings: Settings) -> None:
    rows = [entry for entry in server_of(options, settings).models() if entry["state"] != "not-loaded"]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print("no model is in memory; the first request for one loads it, and so does `penstock load`")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("MODEL", overflow="fold")
    table.add_column("STATE")
    for heading in ("PARAMETERS", "MEMORY", "CONTEXT", "REQUESTS"):
        table.add_column(heading, justify="right")
    table.add_column("UNLOADS")
    for row in rows:
        sizes = (count(row["num_parameters"]), size(row.get("memory_bytes")), f"{row['max_model_len'] or 0:,}")
        table.add_row(row["id"], row["state"], *sizes, str(row.get("requests_in_flight", 0)), _end(row))
    stdout().print(table)


def _end(row: dict[str, Any]) -> str:
    """When the model goes."""
    if row["state"] != "loaded":
        return ""
    if row["ttl"] is None:
        return "by hand only"
    if row["requests_in_flight"]:
        return f"{duration(row['ttl'])} after its last request"
    return f"in {duration(row['ttl_left'])}"
