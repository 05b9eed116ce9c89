"""Measures what 8 running chats feel when a prompt of 100,000 tokens arrives, and an archive to embed after it.

    python benchmarks/long_prompt.py [--prompt-tokens N] [--layers N] [arguments of penstock serve]

The model is made here: layers of SmolLM2's width with a third of its heads, random weights and room for 131,072 tokens.
They are few, or the prompt would take hours on a CPU; the cost of a token grows more steeply with the context than a
large model's, since attention is nearly all of it. Every load is measured with the server's own `--itl-target` and with
0, which sets no bound. Meanwhile somebody asks something short every 2 seconds. The result lands in
benchmarks/results/long_prompt.json.
"""

import argparse
import asyncio
import itertools
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import torch
from rich.console import Console
from server import CHAT_MODEL, EMBEDDING_MODEL, RESULTS, Server
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from penstock.serving.bench.machine import this_machine
from penstock.serving.cli import make_serve_parser
from penstock.serving.settings import load_settings
from penstock.serving.shelf.download import fetch_starter
from penstock.serving.shelf.starter import STARTER_MODELS

MODEL = "long-context-model"
NUM_STREAMS = 8
SECONDS_BEFORE = 10.0
INGEST_SHARE = 0.9  # of the prompt is computed when the ingest begins
WORDS = "the water under pressure turns a wheel and of to in is was for it with as his on be at by had not are but from"


@dataclass
class Log:
    """What happened when, by the monotonic clock."""

    gaps: list[tuple[float, float]] = field(default_factory=list)
    """When a token of a stream came, and the seconds since the one before."""
    short: list[tuple[float, float]] = field(default_factory=list)
    """When a short question was asked, and the seconds to its first token."""
    num_texts: list[float] = field(default_factory=list)
    """When each batch of 32 texts was embedded."""

    def phase(self, name: str, begin: float, end: float) -> dict[str, Any]:
        """The numbers of a span of time."""
        gaps = sorted(1000 * gap for at, gap in self.gaps if begin <= at < end)
        short = [1000 * wait for at, wait in self.short if begin <= at < end]
        texts = 32 * sum(begin <= at < end for at in self.num_texts)
        return {
            "phase": name,
            "seconds": round(end - begin, 1),
            "itl_ms": {"p50": _rank(gaps, 0.5), "p99": _rank(gaps, 0.99), "max": _rank(gaps, 1.0)},
            "output_tokens_per_s": round(len(gaps) / (end - begin), 1),
            "short_ttft_ms": {
                "num": len(short), "median": round(statistics.median(short)) if short else None,
                "max": round(max(short)) if short else None,
            },
            "texts_per_s": round(texts / (end - begin), 1),
        }  # fmt: skip


def _rank(ordered: list[float], share: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) if ordered else None


def make_model(folder: Path, tokenizer: Path, num_layers: int) -> None:
    """Write the model, with the chat model's tokenizer."""
    shape = json.loads((tokenizer / "config.json").read_text())
    torch.manual_seed(0)
    changes = {"num_hidden_layers": num_layers, "num_attention_heads": 3, "num_key_value_heads": 1}
    config = LlamaConfig(**shape | changes | {"max_position_embeddings": 2**17})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder)


def text_of(tokenizer: Tokenizer, num_tokens: int, seed: int) -> str:
    """Words without sense that have about so many tokens."""
    words = random.Random(seed).choices(WORDS.split(), k=num_tokens)
    encoded = tokenizer.encode(" ".join(words), add_special_tokens=False)
    return tokenizer.decode(encoded.ids[:num_tokens])


class Client:
    """Sends the requests of one load."""

    def __init__(self, session: aiohttp.ClientSession, tokenizer: Tokenizer) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._seeds = itertools.count()

    async def chat(self, num_tokens: int, max_tokens: int) -> AsyncIterator[float]:
        """When each token came, for a prompt that nobody has sent before."""
        prompt = text_of(self._tokenizer, num_tokens, next(self._seeds))
        body = {
            "model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens,
            "stream": True, "ignore_eos": True,
        }  # fmt: skip
        async with self._session.post("/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if b'"content":' in line and b'"role"' not in line:
                    yield time.monotonic()

    async def stream(self, log: Log, started: asyncio.Event) -> None:
        """A chat that goes on and on."""
        last = 0.0
        async for now in self.chat(64, 60_000):
            if last:
                log.gaps.append((now, now - last))
                started.set()
            last = now

    async def ask_now_and_then(self, log: Log) -> None:
        """A short question every 2 seconds."""
        while True:
            asked = time.monotonic()
            async for now in self.chat(64, 1):
                log.short.append((asked, now - asked))
            await asyncio.sleep(max(0.0, 2 - (time.monotonic() - asked)))

    async def embed(self, log: Log) -> None:
        """Batches of 32 texts of 100 tokens without pause."""
        while True:
            texts = [text_of(self._tokenizer, 100, next(self._seeds)) for _ in range(32)]
            async with self._session.post("/v1/embeddings", json={"model": EMBEDDING_MODEL, "input": texts}) as answer:
                answer.raise_for_status()
                await answer.read()
            log.num_texts.append(time.monotonic())

    async def num_prompt_tokens(self) -> float:
        """Prompt tokens that the model has computed so far."""
        async with self._session.get("/metrics") as answer:
            lines = (await answer.text()).splitlines()
        start = f'vllm:prompt_tokens_total{{model_name="{MODEL}"}}'
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))


async def measure(url: str, tokenizer: Tokenizer, num_tokens: int) -> list[dict[str, Any]]:
    """The phases of one load: before the prompt, beside it, and beside it and the ingest."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(url, timeout=timeout, read_bufsize=2**20) as session, _Background() as background:
        client, log = Client(session, tokenizer), Log()
        started = [asyncio.Event() for _ in range(NUM_STREAMS)]
        for event in started:
            background.start(client.stream(log, event))
        await asyncio.gather(*(event.wait() for event in started))
        background.start(client.ask_now_and_then(log))
        await asyncio.sleep(2)  # the pace of short prompts is known then
        begin = time.monotonic()
        await asyncio.sleep(SECONDS_BEFORE)
        arrived = time.monotonic()
        half = await client.num_prompt_tokens() + INGEST_SHARE * num_tokens
        long_prompt = asyncio.create_task(_first(client.chat(num_tokens, 2)))
        while not long_prompt.done() and await client.num_prompt_tokens() < half:
            await asyncio.sleep(0.5)
        ingest = time.monotonic()
        for _ in range(4):
            background.start(client.embed(log))
        answered = await long_prompt
        phases = [
            log.phase("before", begin, arrived),
            log.phase("long prompt", arrived, ingest),
            log.phase("long prompt and embedding ingest", ingest, answered),
        ]
    return [*phases, {"phase": "the long prompt itself", "ttft_s": round(answered - arrived, 1)}]


async def _first(times: AsyncIterator[float]) -> float:
    return [now async for now in times][0]


class _Background:
    """Tasks that go on until the end; what goes wrong in one of them ends the whole."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "_Background":
        await self._group.__aenter__()
        return self

    def start(self, work: Any) -> None:
        self._tasks.append(self._group.create_task(work))

    async def __aexit__(self, *reason: Any) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(*reason)


def main() -> None:
    """Run the whole table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--targets", nargs="*", default=["default", "0"])
    options, arguments = parser.parse_known_args()
    home = load_settings(vars(make_serve_parser().parse_args(arguments))).home
    source = fetch_starter(STARTER_MODELS[CHAT_MODEL], home, Console(stderr=True))
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / MODEL
        make_model(model, source, options.layers)
        for target in options.targets:
            flags = [] if target == "default" else ["--itl-target", target]
            served = [str(model), EMBEDDING_MODEL, *flags, "--request-timeout", "0", *arguments]
            with Server(served, EMBEDDING_MODEL) as url:
                for phase in asyncio.run(measure(url, tokenizer, options.prompt_tokens)):
                    rows.append({"itl_target": target} | phase)
                    print(json.dumps(rows[-1]), flush=True)
    command = " ".join(["python benchmarks/long_prompt.py", *arguments])
    document = {"command": command, "machine": asdict(this_machine()), "num_layers": options.layers, "rows": rows}
    (RESULTS / "long_prompt.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
