"""Measures the whole server over HTTP with `penstock bench`: chat at 1, 8 and 32 streams, embeddings, and both at once.

    python benchmarks/server.py                      starts a server of its own with the two starter models
    python benchmarks/server.py --url URL --model M  measures a server that runs already, ours or a peer's

The chat workload is 64 prompt tokens and 64 output tokens per request. Weights have the number format that
`--dtype auto` picks: bfloat16 on a processor with instructions for it, float32 on any other; the server's first table
names it. Further arguments go to `penstock serve`. `embeddings.py` compares embeddings with the library. Results land
in benchmarks/results as JSON. Keep the machine quiet: one busy core halves the numbers.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

RESULTS = Path(os.path.relpath(Path(__file__).parent / "results"))  # short, for it stands in every result
CHAT_MODEL, EMBEDDING_MODEL = "smollm2-135m-instruct", "all-minilm-l6-v2"
STREAMS = (1, 8, 32)
PORT = 8234


class Server(AbstractContextManager[str]):
    """`penstock serve`; entering gives its URL and prints the time to the first answer of `model`."""

    def __init__(self, arguments: list[str], model: str = CHAT_MODEL) -> None:
        self.arguments = arguments
        self.model = model

    def __enter__(self) -> str:
        url = f"http://127.0.0.1:{PORT}"
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penstock.serving.cli", "serve", "--port", str(PORT), *self.arguments]
        )
        while True:
            time.sleep(0.1)
            if self.process.poll() is not None:
                raise SystemExit("the server did not start")
            try:
                if self.model == CHAT_MODEL:
                    ask(url, "/v1/completions", {"model": self.model, "prompt": "Hello", "max_tokens": 1})
                else:
                    ask(url, "/v1/embeddings", {"model": self.model, "input": "Hello"})
                break
            except OSError:
                continue
        print(f"first answer {time.perf_counter() - started:.1f} s after the start", flush=True)
        return url

    def __exit__(self, *reason: object) -> None:
        self.process.terminate()
        self.process.wait(30)


def ask(url: str, path: str, body: dict[str, object]) -> None:
    """One request that must succeed."""
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=60).read()


def bench(url: str, model: str, name: str, *arguments: str, results: Path = RESULTS) -> None:
    """One run of `penstock bench`; the result lands in `results/name.json`."""
    command = [sys.executable, "-m", "penstock.serving.cli", "bench", "--url", url, "--model", model]
    subprocess.run([*command, "--json", str(results / f"{name}.json"), *arguments], check=True)


@contextmanager
def load_beside(url: str, *arguments: str) -> Iterator[None]:
    """`penstock bench` without pause in the background."""
    command = [sys.executable, "-m", "penstock.serving.cli", "bench", "--url", url, "--duration", "600", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(5)  # until its queue is full
        yield
    finally:
        process.terminate()
        process.wait()


def ingest(url: str, num_clients: int) -> AbstractContextManager[None]:
    """Clients that embed batches of 32 texts of 100 tokens without pause, in the background."""
    load = ("--endpoint", "embeddings", "--batch-size", "32", "--input-len", "100")
    return load_beside(url, "--model", EMBEDDING_MODEL, "--concurrency", str(num_clients), *load)


def main() -> None:
    """Run the whole table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--model", default=CHAT_MODEL)
    parser.add_argument("--label", default="penstock")
    parser.add_argument("--skip-embeddings", action="store_true")
    options, serve_arguments = parser.parse_known_args()
    RESULTS.mkdir(exist_ok=True)
    with nullcontext(options.url) if options.url else Server(serve_arguments) as url:
        for streams in STREAMS:
            bench(
                url, options.model, f"{options.label}-chat-{streams}",
                "--endpoint", "chat", "--concurrency", str(streams), "--num-requests", str(max(8, 6 * streams)),
                "--warmup", str(streams), "--input-len", "64", "--output-len", "64", "--label", options.label,
            )  # fmt: skip
        if not options.skip_embeddings:
            bench(
                url, EMBEDDING_MODEL, f"{options.label}-embeddings",
                "--endpoint", "embeddings", "--concurrency", "16", "--num-requests", "64", "--warmup", "8",
                "--batch-size", "32", "--input-len", "28", "--label", options.label,
            )  # fmt: skip
            with ingest(url, 16):
                bench(
                    url, options.model, f"{options.label}-chat-4-beside-embeddings",
                    "--endpoint", "chat", "--concurrency", "4", "--num-requests", "12",
                    "--input-len", "64", "--output-len", "64", "--label", f"{options.label} beside embeddings",
                )  # fmt: skip


if __name__ == "__main__":
    main()
