"""The soak comes through a short run, and its report says so; what it would find wrong is no success."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from soak import Soak
from soak_load import RefusedError, Scenario, WrongAnswerError

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def test_a_short_run_finds_nothing_wrong(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(PROGRAM),
        "--tiny",
        "--minutes",
        "0.08",
        "--clients",
        "4",
        "--results",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["problems"] == [] and report["wrong"] == 0
    assert report["answered"] > 0 and report["samples"]
    assert report["idle"]["vllm:kv_cache_usage"] == 0
    assert (tmp_path / "soak.md").is_file() and (tmp_path / "soak.png").is_file()


def _answer(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(
        status, json={"error": {"code": "c"}}, headers=headers, request=httpx.Request("GET", "http://s")
    )


@pytest.mark.parametrize(
    ("error", "counted_as"),
    [
        (None, "answered"),
        (RefusedError(_answer(429, **{"Retry-After": "3"})), "refused"),
        (RefusedError(_answer(429)), "failed"),
        (RefusedError(_answer(500)), "failed"),
        (WrongAnswerError("no"), "wrong"),
        (httpx.ReadError("cut"), "failed"),
        (TimeoutError(), "failed"),
    ],
)
async def test_how_a_request_counts(error: Exception | None, counted_as: str) -> None:
    async def scenario(caller: Any, rng: Any) -> None:
        if error is not None:
            raise error

    watched: Any = SimpleNamespace(keys={}, now=1.0, kills=[])
    soak = Soak(SimpleNamespace(tiny=True), watched)  # type: ignore[arg-type]
    attempt: Scenario = scenario
    await soak._try(attempt, None, None)  # type: ignore[arg-type]
    counters: dict[str, Counter[str]] = {
        name: getattr(soak.tally, name) for name in ("answered", "refused", "failed", "wrong")
    }
    assert {name: counter.total() for name, counter in counters.items()} == {
        **dict.fromkeys(counters, 0),
        counted_as: 1,
    }
