"""`penstock status`: whether a server runs, and what it is doing."""

import argparse
import json

from ..settings import Settings
from .options import make_parser, run_command, server_of


def run(arguments: list[str]) -> int:
    """Tell it; 1 if no server runs or its worker is dead."""
    return run_command(make_parser("status", "Say whether a server runs, and what it is doing."), arguments, _tell)


def _tell(options: argparse.Namespace, settings: Settings) -> None:
    server = server_of(options, settings)
    health = server.get("/health")
    models = server.models()
    loaded = [entry for entry in models if entry["state"] == "loaded"]
    state = {
        "url": server.url,
        "status": health["status"],
        "models": len(models),
        "loaded": [entry["id"] for entry in loaded],
        "requests_in_flight": sum(entry["requests_in_flight"] for entry in loaded),
        "failed": health["failed"],
    }
    if options.json:
        print(json.dumps(state))
        return
    print(f"A server runs at {server.url}/v1: {state['status']}")
    print(f"In memory: {', '.join(state['loaded']) or 'no model'} (of {state['models']} models)")
    print(f"Requests in flight: {state['requests_in_flight']}")
    for name, reason in state["failed"].items():
        print(f"{name} cannot be served: {reason}")
