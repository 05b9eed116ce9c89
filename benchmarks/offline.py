"""Compares the server with its own engine: the same chats over HTTP, and as jobs in a loop of `Engine.step`.

    python benchmarks/offline.py [--concurrency 256] [--num-requests 512]

Both keep so many requests in flight, with 94 prompt tokens (64 of the user's and the template's), 64 output tokens and
the starter model's own sampling. On a machine with few processors the server shares them with its API process and with
the client, so the processor time of the API process is shown too. The result lands in benchmarks/results.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import psutil
from api import free_port
from rich.console import Console

from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.messages import Submit
from penstock.scheduler.sampling_params import SamplingParams
from penstock.serving.settings import load_settings
from penstock.serving.shelf.download import fetch_starter
from penstock.serving.shelf.starter import STARTER_MODELS

MODEL = "smollm2-135m-instruct"
USER_TOKENS, PROMPT_TOKENS, OUTPUT_TOKENS = 64, 94, 64
FIRST_TEXT_ID = 300
CLI = [sys.executable, "-m", "penstock.serving.cli"]


def make_job(number: int, vocab_size: int) -> Submit:
    draw = random.Random(number)
    prompt = [draw.randrange(FIRST_TEXT_ID, vocab_size) for _ in range(PROMPT_TOKENS)]
    sampling = SamplingParams(max_tokens=OUTPUT_TOKENS, seed=number, temperature=0.2, top_p=0.9, ignore_eos=True)
    return Submit(f"job-{number}", MODEL, prompt, sampling, float(number))


def measure_engine(concurrency: int, num_requests: int) -> float:
    """Tokens a second of a loop that does nothing but step; loads the engine into this process."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as for the worker; read when torch is imported
    from penstock.scheduler.engine import Engine
    from penstock.scheduler.loader import load_runner

    config: EngineConfig = load_settings({}).engine_config()
    folder = fetch_starter(STARTER_MODELS[MODEL], load_settings({}).home, Console(quiet=True))
    engine = Engine(config)
    engine.install(load_runner(ModelSpec(MODEL, str(folder), "generate"), config))
    vocab_size = engine.describe(MODEL).vocab_size

    def run(first: int, count: int) -> float:
        started = time.perf_counter()
        waiting = iter(range(first, first + count))
        for number in islice(waiting, concurrency):
            engine.add(make_job(number, vocab_size))
        num_tokens = 0
        while engine.has_work:
            for output in engine.step().outputs:
                num_tokens += len(output.token_ids)
                if output.finish_reason is not None and (number := next(waiting, None)) is not None:
                    engine.add(make_job(number, vocab_size))
        return num_tokens / (time.perf_counter() - started)

    run(0, 16)
    return run(16, num_requests)


def measure_server(concurrency: int, num_requests: int) -> tuple[float, float]:
    """Tokens a second over HTTP, and the API process's processor time for each, in microseconds."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    server = subprocess.Popen([*CLI, "serve", MODEL, "--port", str(port)], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        for line in server.stderr:
            if line.startswith("Ready at"):
                break
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "bench.json"
            lengths = ["--input-len", str(USER_TOKENS), "--output-len", str(OUTPUT_TOKENS)]
            load = ["--concurrency", str(concurrency), "--num-requests", str(num_requests), "--warmup", "16"]
            before = psutil.Process(server.pid).cpu_times()
            subprocess.run(
                [*CLI, "bench", "--url", url, "--model", MODEL, *lengths, *load, "--json", str(result)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            after = psutil.Process(server.pid).cpu_times()
            measured = json.loads(result.read_text())
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    used = after.user + after.system - before.user - before.system
    rate: float = measured["total"]["output_tokens_per_s"]
    return rate, 1e6 * used / (OUTPUT_TOKENS * (num_requests + 16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--num-requests", type=int, default=512)
    options = parser.parse_args()
    load = (options.concurrency, options.num_requests)
    over_http, api_microseconds = measure_server(*load)
    alone = measure_engine(*load)
    result = {
        "command": " ".join(["python", *map(os.path.relpath, sys.argv[:1]), *sys.argv[1:]]),
        "concurrency": options.concurrency,
        "num_requests": options.num_requests,
        "engine_tokens_per_second": round(alone, 1),
        "server_tokens_per_second": round(over_http, 1),
        "share": round(over_http / alone, 3),
        "api_cpu_microseconds_per_token": round(api_microseconds, 1),
    }
    print(json.dumps(result, indent=2))
    name = f"offline-{options.concurrency}.json"
    (Path(__file__).parent / "results" / name).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
