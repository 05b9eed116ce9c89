"""Measures the API processes alone, in front of a worker without a device: what a streamed token and a request cost.

    python benchmarks/api.py [--streams 1 32 256] [--endpoints chat completions responses] [--api-processes 2]

The worker gives every stream a token a step, so slowly that the API processes keep up: then nothing is sent together
that would else be sent apart. What they cost is read from their processor time, so the client, which counts events
beside them, is no part of it. "Frames a CPU second" is what one processor that does nothing else could send.
"""

import argparse
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table

from penstock.serving.bench.machine import this_machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MODEL = "smollm2-135m-instruct"
PROMPT = "Water under pressure turns the wheel that lights the lamps of the town at night, " * 4
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses"}
END = b"\r\n0\r\n\r\n"
"""Of a chunked answer."""
MIN_STEP_MS = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    endpoint: str
    streams: int
    tokens_per_request: int
    step_ms: float
    requests: int
    tokens: int
    events: int
    seconds: float
    api_cpu_seconds: float
    """Of all API processes."""

    @property
    def tokens_per_cpu_second(self) -> float:
        """What one processor could send."""
        return self.tokens / self.api_cpu_seconds

    @property
    def requests_per_cpu_second(self) -> float:
        """What one processor could answer."""
        return self.requests / self.api_cpu_seconds


def request_of(endpoint: str, num_tokens: int) -> bytes:
    """The whole HTTP request."""
    text = {
        "chat": {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": num_tokens},
        "completions": {"prompt": PROMPT, "max_tokens": num_tokens},
        "responses": {"input": PROMPT, "max_output_tokens": num_tokens, "store": False},
    }[endpoint]
    body = json.dumps({"model": MODEL, "stream": True} | text).encode()
    head = f"POST {PATHS[endpoint]} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"content-type: application/json\r\n\r\n" + body


class Stream:
    """A connection that sends its request again whenever the answer is complete."""

    def __init__(self, port: int, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.num_events = 0
        self.num_answers = 0
        self.is_waiting = False

    def ask(self) -> None:
        """Send the request."""
        self.is_waiting = True
        self.socket.sendall(self._request)

    def read(self) -> None:
        """Take what has come."""
        piece = self.socket.recv(2**18)
        if not piece:
            raise SystemExit("the server has closed a connection")
        self.num_events += piece.count(b"\n\n")
        if piece.startswith(b"HTTP/1.1 ") and not piece.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the server refuses: {piece[:500]!r}")
        self._tail = (self._tail + piece)[-len(END) :]
        if self._tail == END:
            self.is_waiting = False
            self.num_answers += 1


def drive(port: int, request: bytes, num_streams: int, seconds: float) -> tuple[int, int, float]:
    """Keep the streams busy for so long, and let the last answers end; returns answers, events and seconds."""
    selector = selectors.DefaultSelector()
    streams = [Stream(port, request) for _ in range(num_streams)]
    started = time.monotonic()
    for stream in streams:
        selector.register(stream.socket, selectors.EVENT_READ, stream)
        stream.ask()
    num_running = num_streams
    while num_running:
        for key, _ in selector.select():
            stream = key.data
            stream.read()
            if not stream.is_waiting:
                if time.monotonic() - started < seconds:
                    stream.ask()
                else:
                    num_running -= 1
    elapsed = time.monotonic() - started
    for stream in streams:
        stream.socket.close()
    return sum(s.num_answers for s in streams), sum(s.num_events for s in streams), elapsed


@contextmanager
def null_server(port: int, step_ms: float, arguments: list[str]) -> Iterator[psutil.Process]:
    """The server, when it answers."""
    command = [sys.executable, str(HERE / "null_server.py"), "serve", MODEL, "--port", str(port), *arguments]
    environment = os.environ | {"ECHO_STEP_MS": str(step_ms)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        while True:
            time.sleep(0.1)
            if process.poll() is not None:
                raise SystemExit("the server did not start")
            try:
                drive(port, request_of("chat", 2), 1, 0)
                break
            except OSError:
                continue
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def api_processes(server: psutil.Process) -> list[psutil.Process]:
    """All but the worker."""
    family = [server, *server.children(recursive=True)]
    return [process for process in family if "echo_worker.py" not in " ".join(process.cmdline())]


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def measure(endpoint: str, num_streams: int, num_tokens: int, options: argparse.Namespace) -> Row:
    """Start a server, warm it up, measure it."""
    step_ms = max(MIN_STEP_MS, 1000 * num_streams / options.rate)
    arguments = ["--api-processes", str(options.api_processes)] if options.api_processes > 1 else []
    port = free_port()
    with null_server(port, step_ms, arguments) as server:
        request = request_of(endpoint, num_tokens)
        drive(port, request, num_streams, 0.5)
        processes = api_processes(server)
        before = cpu_seconds(processes)
        num_answers, num_events, seconds = drive(port, request, num_streams, options.seconds)
        used = cpu_seconds(processes) - before
    return Row(
        endpoint, num_streams, num_tokens, step_ms, num_answers, num_answers * num_tokens, num_events, seconds, used
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--endpoints", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--output-len", type=int, nargs="+", default=[1, 128], help="1 measures requests")
    parser.add_argument("--rate", type=float, default=6000, help="tokens a second that the worker makes")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--api-processes", type=int, default=1)
    parser.add_argument("--name", help="of the result and its plot in benchmarks/results; without it: none")
    options = parser.parse_args()
    table = Table("endpoint", "streams", "tokens", "tokens/s", "frames/CPU s", "requests/CPU s", "events/token")
    rows = []
    for endpoint in options.endpoints:
        for num_streams in options.streams:
            for num_tokens in options.output_len:
                row = measure(endpoint, num_streams, num_tokens, options)
                rows.append(row)
                table.add_row(
                    endpoint,
                    str(num_streams),
                    str(num_tokens),
                    f"{row.tokens / row.seconds:.0f}",
                    f"{row.tokens_per_cpu_second:.0f}",
                    f"{row.requests_per_cpu_second:.0f}",
                    f"{row.events / row.tokens:.2f}",
                )
    Console().print(table)
    if options.name:
        document = {
            "command": " ".join(["python", "benchmarks/api.py", *sys.argv[1:]]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": asdict(this_machine()),
            "rows": [asdict(row) for row in rows],
        }
        (RESULTS / f"{options.name}.json").write_text(json.dumps(document, indent=1) + "\n")
        plot(rows, RESULTS / f"{options.name}.png")


def plot(rows: list[Row], file: Path) -> None:
    """What a token costs, against the number of streams: a flat line is a cost that does not grow with it."""
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for endpoint, num_tokens in dict.fromkeys((row.endpoint, row.tokens_per_request) for row in rows):
        line = [row for row in rows if (row.endpoint, row.tokens_per_request) == (endpoint, num_tokens)]
        costs = [1e6 / row.tokens_per_cpu_second for row in line]
        axes.loglog([row.streams for row in line], costs, "o-", label=f"{endpoint}, {num_tokens} tokens an answer")
    axes.set(xlabel="streams", ylabel="processor time of a token, µs", title="API process")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
