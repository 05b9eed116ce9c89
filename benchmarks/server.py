"""Measures the whole server over HTTP with `penstock bench`: chat at 1, 8 and 32 streams, embeddings, and both at once.

    python benchmarks/server.py                      starts a server of its own with the two starter models
    python benchmarks/server.py --url URL --model M  measures a server that runs already, ours or a peer's

The chat workload is 64 prompt tokens and 64 output tokens per request. Weights have the number format that
`--dtype auto` picks: bfloat16 on a processor with instructions for it, float32 on any other; the server's first table
names it. Further arguments go to `penstock serve`. Embeddings are compared with `SentenceTransformer.encode`, in
float32, of the same kind of texts in this process, which runs when the server has ended. Results land in
benchmarks/results as JSON. Keep the machine quiet: one busy core halves the numbers.
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

from rich.console import Console

from penstock.serving.cli import make_serve_parser
from penstock.serving.settings import load_settings
from penstock.serving.shelf.download import fetch_starter
from penstock.serving.shelf.starter import STARTER_MODELS

RESULTS = Path(os.path.relpath(Path(__file__).parent / "results"))  # short, for it stands in every result
CHAT_MODEL, EMBEDDING_MODEL = "smollm2-135m-instruct", "all-minilm-l6-v2"
WORDS = "water under pressure turns the wheel that lights the lamps of the town at night"
STREAMS = (1, 8, 32)
PORT = 8234


class Server(AbstractContextManager[str]):
    """`penstock serve` with the starter models; entering gives its URL and prints the time to the first answer."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments

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
                ask(url, "/v1/completions", {"model": CHAT_MODEL, "prompt": "Hello", "max_tokens": 1})
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


def encode_in_process(folder: Path, num_texts: int, batch_size: int) -> float:
    """Texts a second of the library alone: one call of `encode` over texts of about thirty tokens."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    words = WORDS.split()
    texts = [" ".join(words[(i + j) % len(words)] for j in range(28)) for i in range(num_texts)]
    model.encode(texts[:batch_size], batch_size=batch_size)
    started = time.perf_counter()
    model.encode(texts, batch_size=batch_size)
    return num_texts / (time.perf_counter() - started)


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
    if not options.skip_embeddings:
        home = load_settings(vars(make_serve_parser().parse_args(serve_arguments))).home
        folder = fetch_starter(STARTER_MODELS[EMBEDDING_MODEL], home, Console(stderr=True))
        print(f"SentenceTransformer.encode in this process: {encode_in_process(folder, 1024, 32):.0f} texts/s")


if __name__ == "__main__":
    main()
