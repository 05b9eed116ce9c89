"""Compares embeddings over HTTP with `SentenceTransformer.encode` in one process, in float32 and in bfloat16.

    python benchmarks/embeddings.py

MiniLM, texts of about 30 tokens, 32 in a request or batch, 16 requests at once. For each number format a server starts,
and the two are measured in turns, so that what else runs on the machine meets both; the best round of each counts. The
cosines are those of the server's bfloat16 vectors with the library's in float32.
"""

import json
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer
from server import EMBEDDING_MODEL, Server, bench

from penstock.serving.cli import make_serve_parser
from penstock.serving.settings import load_settings
from penstock.serving.shelf.download import fetch_starter
from penstock.serving.shelf.starter import STARTER_MODELS

DTYPES = ("float32", "bfloat16")
ROUNDS = 3
BATCH = 32
WORDS = ("water", "pressure", "turns", "the", "wheel", "that", "lights", "lamps", "of", "town", "at", "night")


def make_texts(number: int) -> list[str]:
    """Texts of 28 words, which are 30 tokens."""
    chooser = np.random.default_rng(0)
    return [" ".join(chooser.choice(WORDS, 28)) for _ in range(number)]


def encode_rate(model: SentenceTransformer, texts: list[str]) -> float:
    """Texts a second of the library alone."""
    started = time.perf_counter()
    model.encode(texts, batch_size=BATCH, show_progress_bar=False)
    return len(texts) / (time.perf_counter() - started)


def http_rate(url: str, dtype: str) -> float:
    """Texts a second of the server."""
    with tempfile.TemporaryDirectory() as folder:
        bench(
            url, EMBEDDING_MODEL, dtype,
            "--endpoint", "embeddings", "--concurrency", "16", "--num-requests", "64", "--warmup", "8",
            "--batch-size", str(BATCH), "--input-len", "28", "--label", dtype, results=Path(folder),
        )  # fmt: skip
        run = json.loads(Path(folder, f"{dtype}.json").read_text())
    return float(run["total"]["texts_per_s"])


def embed(url: str, texts: list[str]) -> np.ndarray:
    """The server's vectors, [texts, dim]."""
    body = json.dumps({"model": EMBEDDING_MODEL, "input": texts}).encode()
    request = urllib.request.Request(url + "/v1/embeddings", body, headers={"Content-Type": "application/json"})
    answer = json.load(urllib.request.urlopen(request, timeout=60))
    return np.array([item["embedding"] for item in answer["data"]])


def main() -> None:
    """Print the table."""
    home = load_settings(vars(make_serve_parser().parse_args([]))).home
    folder: Path = fetch_starter(STARTER_MODELS[EMBEDDING_MODEL], home, Console(stderr=True))
    texts = make_texts(512)
    rows = []
    wide = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    expected = wide.encode(texts[:64], show_progress_bar=False)
    for dtype in DTYPES:
        model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
        model.encode(texts[:BATCH], show_progress_bar=False)
        server = Server([EMBEDDING_MODEL, "--embedding-dtype", dtype], EMBEDDING_MODEL)
        with server as url:
            vectors = embed(url, texts[:64])
            cosines = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
            rates = [(http_rate(url, dtype), encode_rate(model, texts)) for _ in range(ROUNDS)]
        http, alone = (max(column) for column in zip(*rates, strict=True))
        rows.append((dtype, http, alone, http / alone, cosines.min()))
    print(f"\n{'dtype':<10} {'HTTP texts/s':>13} {'encode texts/s':>15} {'ratio':>6} {'least cosine':>13}")
    for dtype, http, alone, ratio, cosine in rows:
        print(f"{dtype:<10} {http:>13.0f} {alone:>15.0f} {ratio:>6.2f} {cosine:>13.6f}")


if __name__ == "__main__":
    main()
