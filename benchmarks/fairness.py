"""Measures what a client with one request at a time feels of another with 200, with fair share and without it.

    python benchmarks/fairness.py [--seconds 60] [--num-greedy 200]

Every request has about 64 tokens of user text; those of the load have 64 of output, the light client's 4. It is
measured alone on an idle server, beside 200 clients of one request each (the same load, of equals), and beside one
client with 200 requests in flight, without fair share and with it. Further arguments go to `penstock serve`. Results
land in benchmarks/results/fairness.json and fairness.png. Keep the machine quiet.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import httpx2
from server import CHAT_MODEL, RESULTS, Server

from penstock.serving.bench.machine import this_machine

WORDS = ("water", "wheel", "pipe", "river", "stone", "light", "field", "house", "green", "paper", "music", "winter")
OUTPUT_TOKENS = 64
LIGHT_OUTPUT_TOKENS = 4
MIN_REQUESTS = 3  # of the light client, however slow they are
RAMP_SECONDS = 20  # until the requests of the load are no longer in step
NO_LIMITS = ("--max-waiting-requests", "100000", "--queue-timeout", "0")


class Clients:
    """Everybody who asks one server."""

    def __init__(self, url: str) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx2.AsyncClient(base_url=url, limits=limits, timeout=600)
        self._rng = random.Random(0)
        self.num_tokens = 0
        """Of output, of everybody."""
        self.load_times: list[float] = []
        """Seconds to first tokens of the load's requests."""

    async def ask(self, key: str, num_tokens: int) -> float:
        """One streamed request of so many tokens of output; seconds to its first."""
        body = {
            "model": CHAT_MODEL,
            "messages": [{"role": "user", "content": " ".join(self._rng.choices(WORDS, k=64))}],
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"authorization": f"Bearer {key}"}
        started, first = time.perf_counter(), 0.0
        async with self._http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: {") and '"content":"' in line and '"content":""' not in line:
                    first = first or time.perf_counter() - started
                    self.num_tokens += 1
        return first

    async def keep_asking(self, key: str) -> None:
        """One request after the other, until cancelled; the first is of any length, so that not all end together."""
        await self.ask(key, self._rng.randint(1, OUTPUT_TOKENS))
        while True:
            self.load_times.append(await self.ask(key, OUTPUT_TOKENS))

    async def measure(self, keys: list[str], seconds: float) -> tuple[list[float], float]:
        """The light client's seconds to first tokens beside requests of `keys`, and all tokens a second."""
        load = [asyncio.create_task(self.keep_asking(key)) for key in keys]
        if load:
            await asyncio.sleep(RAMP_SECONDS)
        self.num_tokens = 0
        self.load_times.clear()
        started = time.perf_counter()
        times = []
        while time.perf_counter() - started < seconds or len(times) < MIN_REQUESTS:
            times.append(await self.ask("light", LIGHT_OUTPUT_TOKENS))
        elapsed = time.perf_counter() - started
        rate = self.num_tokens / elapsed
        for task in load:
            task.cancel()
        for task in load:
            with suppress(asyncio.CancelledError):
                await task
        await self._http.aclose()
        return times, rate


def quantiles(times: list[float]) -> dict[str, float]:
    """Milliseconds, of seconds."""
    if len(times) < 2:
        return {}
    return {
        "p50": round(1e3 * statistics.median(times), 1),
        "p90": round(1e3 * statistics.quantiles(times, n=10, method="inclusive")[-1], 1),
    }


def run(name: str, keys: list[str], seconds: float, arguments: list[str]) -> dict[str, Any]:
    """One row of the table, on a fresh server."""
    with Server([CHAT_MODEL, *NO_LIMITS, *arguments]) as url:
        clients = Clients(url)
        times, rate = asyncio.run(clients.measure(keys, seconds))
    row = {
        "name": name,
        "arguments": arguments,
        "num_requests": len(times),
        "ttft_ms": quantiles(times),
        "load_num_requests": len(clients.load_times),
        "load_ttft_ms": quantiles(clients.load_times),
        "output_tokens_per_s": round(rate, 1),
    }
    print(json.dumps(row), flush=True)
    return row


def plot(rows: list[dict[str, Any]]) -> None:
    """Times to the first token, one bar for each quantile and row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4))
    for offset, quantile in ((-0.2, "p50"), (0.2, "p90")):
        bars = axes.barh([at + offset for at in range(len(rows))], [row["ttft_ms"][quantile] for row in rows], 0.38)
        axes.bar_label(bars, fmt="%.0f", padding=3)
        bars.set_label(quantile)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="milliseconds to the light client's first token")
    axes.legend()
    figure.savefig(RESULTS / "fairness.png", dpi=130, bbox_inches="tight")


def main() -> None:
    """Run the whole table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--num-greedy", type=int, default=200)
    options, arguments = parser.parse_known_args()
    greedy = ["greedy"] * options.num_greedy
    equals = [f"equal-{number}" for number in range(options.num_greedy)]
    cases: list[tuple[str, list[str], list[str]]] = [
        ("alone", [], []),
        (f"beside {options.num_greedy} equals", equals, []),
        ("beside one greedy, no fair share", greedy, ["--no-fair-share"]),
        ("beside one greedy, fair share", greedy, []),
    ]
    rows = [run(name, keys, options.seconds, [*extra, *arguments]) for name, keys, extra in cases]
    command = " ".join(["python", "benchmarks/fairness.py", *sys.argv[1:]])
    document = {"command": command, "machine": asdict(this_machine()), "rows": rows}
    (RESULTS / "fairness.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    plot(rows)


if __name__ == "__main__":
    main()
