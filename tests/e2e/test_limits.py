"""Limits of keys on a real server with two API processes, one of which is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest
from openai import OpenAI
from server_process import ServerProcess
from tiny_models import make_tiny, make_tiny_tokenizer

MAX_IN_FLIGHT = 4
LONG = {"model": "tiny", "prompt": "water", "max_tokens": 30_000, "ignore_eos": True, "stream": True}
SOON = 30.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def new_key(home: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "penstock.serving.cli", "keys", "add", *arguments]
    environment = os.environ | {"PENSTOCK_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def keys(home: Path) -> dict[str, str]:
    """Made before the server starts, so that it knows them."""
    return {
        "parallel": new_key(home, "parallel", "--max-in-flight", str(MAX_IN_FLIGHT)),
        "slow": new_key(home, "slow", "--requests-per-minute", "60"),
    }


@pytest.fixture(scope="module")
def server(home: Path, keys: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny("llama", folder, max_position_embeddings=32_768)
    make_tiny_tokenizer(folder)
    with ServerProcess([str(folder)], home=home, arguments=["--api-processes", "2"]) as server:
        yield server
        assert server.stop() == 0


class Streams:
    """Many requests at once, each in a connection of its own and read until it is told to end."""

    def __init__(self, server: ServerProcess, key: str, count: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.refusals: list[httpx2.Response] = []
        self._url = f"{server.base_url}/v1/completions"
        self._headers = {"authorization": f"Bearer {key}"}
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(count)
        self._running = [self._threads.submit(self._ask) for _ in range(count)]

    def _ask(self) -> None:
        with httpx2.stream("POST", self._url, json=LONG, headers=self._headers, timeout=SOON) as answer:
            if answer.status_code != 200:
                answer.read()
                self.refusals.append(answer)
            with self._lock:
                self.statuses[answer.status_code] += 1
            self._ending.wait(SOON)

    def end(self) -> None:
        self._ending.set()
        self._threads.shutdown()
        for running in self._running:
            running.result()


def test_no_more_run_than_may_and_places_of_a_killed_process_come_back(
    server: ServerProcess, keys: dict[str, str]
) -> None:
    streams = Streams(server, keys["parallel"], 40)
    try:
        until(lambda: streams.statuses.total() == 40)
        assert streams.statuses == {200: MAX_IN_FLIGHT, 429: 40 - MAX_IN_FLIGHT}
        for refusal in streams.refusals:
            error = refusal.json()["error"]
            assert f"requests in flight: Limit {MAX_IN_FLIGHT}" in error["message"] and error["type"] == "requests"
            assert int(refusal.headers["retry-after"]) >= 1
    finally:
        streams.end()

    def all_places_are_free() -> bool:
        again = Streams(server, keys["parallel"], MAX_IN_FLIGHT)
        try:
            until(lambda: again.statuses.total() == MAX_IN_FLIGHT)
        finally:
            again.end()
        return again.statuses == {200: MAX_IN_FLIGHT}

    until(all_places_are_free)
    held = Streams(server, keys["parallel"], MAX_IN_FLIGHT)
    try:
        until(lambda: held.statuses.total() == MAX_IN_FLIGHT)
        (sibling,) = (
            child
            for child in psutil.Process(server.pid).children()
            if "penstock.serving.api_process" in child.cmdline()
        )
        os.kill(sibling.pid, signal.SIGKILL)
    finally:
        held.end()
    until(all_places_are_free)


def test_the_openai_client_waits_and_gets_through(server: ServerProcess, keys: dict[str, str]) -> None:
    with OpenAI(base_url=f"{server.base_url}/v1", api_key=keys["slow"], max_retries=0) as client:

        def ask(client: OpenAI) -> str:
            raw = client.completions.with_raw_response.create(model="tiny", prompt="water", max_tokens=1)
            return raw.headers["x-ratelimit-remaining-requests"]

        until(lambda: ask(client) == "0")  # as many as may be at once, faster than they run back
        patient = client.with_options(max_retries=5)
        assert [ask(patient) for _ in range(2)] == ["0", "0"]
