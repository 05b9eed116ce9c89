"""Loads a whole server with everything at once for a chosen time, kills parts of it, and looks for whatever goes wrong.

    python benchmarks/soak.py --minutes 30 --kill-worker 120 --hang-worker 600

A server is started with the starter models in float32 (`--tiny`: with a random chat model), five API keys and a third
model that its requests load. Clients send chats, completions, responses, embeddings, tools, schemas, bad input and
floods (`soak_load.py`). Answers are compared with those of the idle server: none may differ, whatever died meanwhile.
At the end the server must be idle, with no KV block in use, and end in order. Exit status 1: something was wrong.

The report goes to benchmarks/results/soak.json, .md and .png.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import shlex
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import httpx
import soak_load as load
import soak_server as server
from openai import APIConnectionError, APIError, APIStatusError

RESULTS = Path(os.path.relpath(Path(__file__).parent / "results"))
_CUT_SECONDS = 10.0  # after an API process was killed, in which lost connections are its clients'
_END_SECONDS = load.TIMEOUT + 30
_HANG_SECONDS = 30.0


class Soak:
    """One run."""

    def __init__(self, options: argparse.Namespace, watched: server.Watched) -> None:
        self.options = options
        self.watched = watched
        self.tally = load.Tally()
        self.problems: list[str] = []
        self.num_hung = 0
        self.idle: dict[str, float] = {}
        model, references = server.chat_model(options.tiny), {}
        self.callers = {name: load.Caller(watched, name, model, references, self.tally) for name in watched.keys}

    async def run(self) -> None:
        """The load, and the look at the server after it."""
        await load.record_references(self.callers["alice"])
        self.watched.started = time.monotonic()
        end = self.watched.now + 60 * self.options.minutes
        clients = [asyncio.create_task(self._client(number, end)) for number in range(self.options.clients)]
        helpers = [asyncio.create_task(each) for each in (self._watch(end), self._kill(end), self._flood(end))]
        _, hung = await asyncio.wait([*clients, *helpers], timeout=60 * self.options.minutes + _END_SECONDS)
        self.num_hung = len(hung)
        for task in hung:
            task.cancel()
        for task in [*clients, *helpers]:
            if task.done() and not task.cancelled() and (error := task.exception()):
                self.problems.append(f"the soak itself failed: {error!r}")
        await self._wait_until_idle()
        for caller in self.callers.values():
            await caller.close()

    # ----------------------------------------------------------------------------------------------------- the load

    async def _client(self, number: int, end: float) -> None:
        """Sends one request after the other."""
        rng = random.Random(number)
        scenarios, weights = list(load.SCENARIOS), list(load.SCENARIOS.values())
        for_embeddings = [load.embeddings, load.rerank]
        while self.watched.now < end:
            name = rng.choice(["alice", "bob", "bob", "ingest"])
            scenario = rng.choice(for_embeddings) if name == "ingest" else rng.choices(scenarios, weights)[0]
            await self._try(scenario, self.callers[name], rng)
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.2)

    async def _flood(self, end: float) -> None:
        """Now and then more at once than a key may."""
        rng = random.Random(0)
        while self.watched.now < end:
            await asyncio.gather(*(self._try(load.chat, self.callers["flooder"], rng) for _ in range(20)))
            await asyncio.sleep(min(15.0, max(0.0, end - self.watched.now)))

    async def _try(self, scenario: load.Scenario, caller: load.Caller, rng: random.Random) -> None:
        """One request, whose end is counted."""
        kind, tally, begin = getattr(scenario, "__name__", "?"), self.tally, self.watched.now
        tally.sent[kind] += 1
        try:
            await asyncio.wait_for(scenario(caller, rng), load.TIMEOUT)
        except load.WrongAnswerError as error:
            self._count_bad(tally.wrong, kind, error)
        except (APIStatusError, load.RefusedError) as error:
            self._count_refusal(kind, error.response, error)
        except (APIConnectionError, httpx.TransportError) as error:
            if any(begin <= at + _CUT_SECONDS and "sibling" in what for at, what in self.watched.kills):
                tally.cut += 1
            else:
                self._count_bad(tally.failed, f"{kind}: {type(error).__name__}", error)
        except (TimeoutError, APIError, ValueError, KeyError, IndexError) as error:
            self._count_bad(tally.failed, f"{kind}: {type(error).__name__}", error)
        else:
            tally.answered[kind] += 1

    def _count_bad(self, counter: Any, kind: str, error: Exception) -> None:
        counter[kind] += 1
        self.tally.examples.setdefault(kind, f"at {self.watched.now:.1f} s: {error!r}"[:600])

    def _count_refusal(self, kind: str, response: httpx.Response, error: Exception) -> None:
        """A 429 or 503 that says when to come again is an answer too; all other errors are failures."""
        try:
            body = response.json()
        except ValueError:
            body = {}
        details = body.get("error")
        code = details.get("code") or details.get("type") if isinstance(details, dict) else None
        if response.status_code in (429, 503) and float(response.headers.get("retry-after", 0)) >= 1:
            self.tally.refused[f"{response.status_code} {code}"] += 1
        else:
            self._count_bad(self.tally.failed, f"{kind}: {response.status_code} {code}", error)

    # ------------------------------------------------------------------------------------------- what else happens

    async def _watch(self, end: float) -> None:
        """Look at the processes each second, and tell how it goes."""
        told = 0.0
        while self.watched.now < end:
            self.watched.sample()
            if self.watched.now - told >= 30:
                told = self.watched.now
                tally = self.tally
                print(
                    f"{told:5.0f} s: {tally.sent.total()} sent, {tally.answered.total()} answered, "
                    f"{tally.refused.total()} refused, {tally.failed.total()} failed, {tally.wrong.total()} wrong, "
                    f"{len(self.watched.kills)} kills, "
                    f"{self.watched.samples[-1].front_bytes >> 20} MiB API, "
                    f"{self.watched.samples[-1].worker_bytes >> 20} MiB worker",
                    flush=True,
                )
            await asyncio.sleep(1.0)

    async def _kill(self, end: float) -> None:
        """Kill and stop processes when it is time, and none in the last moments."""
        options = self.options
        plans = [("worker", options.kill_worker), ("sibling", options.kill_api), ("hang", options.hang_worker)]
        due = {kind: every for kind, every in plans if every}
        periods = dict(due)
        while self.watched.now < end - 2 * _CUT_SECONDS:
            for kind, at in due.items():
                if self.watched.now >= at:
                    due[kind] = at + periods[kind]
                    if kind == "hang":  # the watchdog kills it, or it goes on
                        self.watched.send("worker", signal.SIGSTOP)
                        await asyncio.sleep(_HANG_SECONDS)
                        self.watched.send("worker", signal.SIGCONT)
                    else:
                        self.watched.send(kind, signal.SIGKILL)
            await asyncio.sleep(0.2)

    async def _wait_until_idle(self) -> None:
        """Nothing runs, waits or holds a block some time after the last request."""
        names = [f"vllm:{name}" for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage")]
        for _ in range(60):
            try:
                text = (await self.callers["watcher"].raw.get("/metrics")).text
            except httpx.TransportError as error:
                self.problems.append(f"/metrics: {error!r}")
                return
            found = re.findall(r"^([a-z:_]+)(?:\{[^}]*\})? ([0-9.e+-]+)$", text, re.MULTILINE)
            self.idle = {name: sum(float(value) for key, value in found if key.startswith(name)) for name in names}
            if not any(self.idle.values()):
                return
            await asyncio.sleep(0.5)
        self.problems.append(f"not idle in the end: {self.idle}")

    # --------------------------------------------------------------------------------------------------- the report

    def report(self, status: int) -> dict[str, Any]:
        """All numbers."""
        tally, samples = self.tally, self.watched.samples
        deaths = [at for at, what in self.watched.kills if "worker" in what and "CONT" not in what]
        pauses = [gap for begin, end, gap in tally.gaps if any(begin <= at <= end for at in deaths)]
        self.problems += [f"{number} wrong answers of {kind}" for kind, number in tally.wrong.items()]
        self.problems += [f"{number} failures, {kind}" for kind, number in tally.failed.items()]
        if self.num_hung:
            self.problems.append(f"{self.num_hung} clients never came back")
        if status != 0:
            self.problems.append(f"the server ended with status {status}")
        settled = [sample for sample in samples if sample.seconds >= min(120.0, samples[-1].seconds / 2)]
        periods = load.by_minute(tally.first_tokens)
        return {
            "command": shlex.join(["python", "benchmarks/soak.py", *sys.argv[1:]]),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
            "seconds": round(samples[-1].seconds),
            "sent": tally.sent.total(),
            "answered": tally.answered.total(),
            "turned_down": dict(tally.expected),
            "refused": dict(tally.refused),
            "cut_with_their_api_process": tally.cut,
            "failed": dict(tally.failed),
            "wrong": tally.wrong.total(),
            "idle": self.idle,
            "kills": [[round(at, 1), what] for at, what in self.watched.kills],
            "workers": self.watched.num_workers,
            "pause_seconds": {"p50": load.quantile(pauses, 0.5), "max": max(pauses, default=0.0)},
            "paused_streams": len(pauses),
            "front_mib": _growth([(each.seconds, each.front_bytes / 2**20) for each in settled]),
            "worker_mib": _growth(
                [
                    (each.seconds, each.worker_bytes / 2**20)
                    for each in settled
                    if each.worker_pid == samples[-1].worker_pid and 2 * each.worker_bytes > samples[-1].worker_bytes
                ]
            ),
            "files": _growth([(each.seconds, each.num_files) for each in settled]),
            "threads": _growth([(each.seconds, each.num_threads) for each in settled]),
            "ttft_seconds": {
                f"{begin:.0f}": {"p50": load.quantile(values, 0.5), "p99": load.quantile(values, 0.99)}
                for begin, values in periods.items()
            },
            "by_kind": {kind: [number, tally.answered[kind]] for kind, number in tally.sent.items()},
            "examples": tally.examples,
            "problems": self.problems,
        }


def _growth(points: list[tuple[float, float]]) -> dict[str, float]:
    """First and last value, and the slope of a straight line through all, an hour."""
    if len(points) < 2:
        return {}
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    return {"first": round(points[0][1], 1), "last": round(points[-1][1], 1), "an_hour": round(3600 * slope, 1)}


def write(report: dict[str, Any], watched: server.Watched, folder: Path) -> None:
    """The report in all its forms."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = [asdict(sample) for sample in watched.samples]
    some = samples[:: max(1, len(samples) // 300)]
    (folder / "soak.json").write_text(json.dumps(report | {"samples": some}, indent=1))
    told = {key.replace("_", " "): value for key, value in report.items() if key not in ("ttft_seconds", "examples")}
    rows = [f"| {key} | {json.dumps(value)} |" for key, value in told.items()]
    (folder / "soak.md").write_text("# Soak\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (memory, latency) = pyplot.subplots(2, 1, figsize=(8, 6), sharex=True)
    seconds = [each.seconds for each in watched.samples]
    memory.plot(seconds, [each.front_bytes / 2**20 for each in watched.samples], label="API processes")
    memory.plot(seconds, [each.worker_bytes / 2**20 for each in watched.samples], label="worker")
    memory.set_ylabel("resident MiB")
    memory.legend()
    for share in ("p50", "p99"):
        points = [(float(begin), values[share]) for begin, values in report["ttft_seconds"].items()]
        latency.step([x for x, _ in points], [y for _, y in points], where="post", label=f"TTFT {share}")
    for at, _ in watched.kills:
        latency.axvline(at, color="grey", linewidth=0.5)
    latency.set_ylabel("seconds")
    latency.set_xlabel("seconds since the start; grey: something was killed")
    latency.legend()
    figure.savefig(folder / "soak.png", dpi=100)


def main() -> int:
    """Run, report, and say whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=16, help="requests in flight, floods apart")
    parser.add_argument("--tiny", action="store_true", help="a random chat model in the starter model's place")
    parser.add_argument("--api-processes", type=int, default=1)
    parser.add_argument("--kill-worker", type=float, default=0.0, metavar="SECONDS", help="SIGKILL it so often")
    parser.add_argument("--kill-api", type=float, default=0.0, metavar="SECONDS", help="one that is not the first")
    parser.add_argument("--hang-worker", type=float, default=0.0, metavar="SECONDS", help="SIGSTOP it so often")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    arguments = ["--api-processes", str(options.api_processes)]
    arguments += ["--watchdog-timeout", "20"] if options.hang_worker else []
    with tempfile.TemporaryDirectory(prefix="penstock-soak-") as folder:
        watched = server.start(Path(folder) / "home", tiny=options.tiny, arguments=arguments)
        soak = Soak(options, watched)
        try:
            asyncio.run(soak.run())
            status = watched.process.stop(timeout=60)
        finally:
            if watched.process.process.poll() is None:
                watched.process.stop(signal.SIGKILL)
            options.results.mkdir(parents=True, exist_ok=True)
            server.keep_log(watched, options.results / "soak.log")
    report = soak.report(status)
    write(report, watched, options.results)
    print(json.dumps({key: value for key, value in report.items() if key != "ttft_seconds"}, indent=1))
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
