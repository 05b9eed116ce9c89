"""Measures what a model feels of the others: the pace of 4 chat streams alone, beside an ingest, beside other chats.

    python benchmarks/pacing.py

Each load is measured with the server's own `--itl-target` and with 0, which sets no bound. The streams have 64 prompt
and 128 output tokens. Beside them 4 clients embed batches of 32 texts of 100 tokens, or 2 clients send prompts of 2000
tokens to a copy of the chat model under another name. Arguments go to `penstock serve`. The result lands in
benchmarks/results/pacing.json. Keep the machine quiet.
"""

import json
import shutil
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from server import CHAT_MODEL, EMBEDDING_MODEL, RESULTS, Server, bench, ingest, load_beside

from penstock.serving.bench.machine import this_machine
from penstock.serving.cli import make_serve_parser
from penstock.serving.settings import load_settings
from penstock.serving.shelf.download import fetch_starter
from penstock.serving.shelf.starter import STARTER_MODELS

SECOND_MODEL = "second-chat-model"
STREAMS = ("--endpoint", "chat", "--concurrency", "4", "--num-requests", "4", "--warmup", "4", "--seed", "1",
           "--input-len", "64", "--output-len", "128")  # fmt: skip
PROMPTS = ("--endpoint", "chat", "--concurrency", "2", "--input-len", "2000", "--output-len", "8")


def measure(url: str, load: str) -> dict[str, Any]:
    """Milliseconds between the tokens of the streams beside a load."""
    beside = {
        "alone": nullcontext(),
        "embedding ingest": ingest(url, 4),
        "second chat model": load_beside(url, "--model", SECOND_MODEL, *PROMPTS),
    }[load]
    with beside, tempfile.TemporaryDirectory() as folder:
        bench(url, CHAT_MODEL, "run", *STREAMS, results=Path(folder))
        total = json.loads((Path(folder) / "run.json").read_text())["total"]
    itl = {name: round(total["itl_ms"][name], 1) for name in ("p50", "p99", "max")}
    return {"load": load, "itl_ms": itl, "output_tokens_per_s": round(total["output_tokens_per_s"], 1)}


def main() -> None:
    """Run the whole table."""
    arguments = sys.argv[1:]
    home = load_settings(vars(make_serve_parser().parse_args(arguments))).home
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        second = Path(folder) / SECOND_MODEL
        shutil.copytree(fetch_starter(STARTER_MODELS[CHAT_MODEL], home, Console(stderr=True)), second)
        for target in ([], ["--itl-target", "0"]):
            with Server([CHAT_MODEL, EMBEDDING_MODEL, str(second), *target, *arguments]) as url:
                for load in ("alone", "embedding ingest", "second chat model"):
                    rows.append({"itl_target": target[1] if target else "default"} | measure(url, load))
    command = " ".join(["python", "benchmarks/pacing.py", *arguments])
    document = {"command": command, "machine": asdict(this_machine()), "rows": rows}
    (RESULTS / "pacing.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
