"""Streams that are refused for want of room: before they begin by their status, later by a last event."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from codex import codex_binary, run_codex, write_config
from fake_engine import CHAT, Front, Script, model_ready, open_front
from tcp_front import listening

from penstock.scheduler.messages import JobError, RequestOutput, Submit
from penstock.serving.handlers.responses import live
from penstock.serving.limits.ledger import Ledger, microseconds
from penstock.serving.limits.standing import DAY, Usage
from penstock.serving.principal import Limits, Principal

FULL = JobError("The queue is full. Please try again in 2.5s.", "rate_limit_exceeded", status=429, retry_after=2.5)
HI: list[Any] = [{"role": "user", "content": "hi"}]
STREAMS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": CHAT, "messages": HI},
    "/v1/completions": {"model": CHAT, "prompt": "hello"},
    "/v1/responses": {"model": CHAT, "input": "hi"},
    "/v1/messages": {"model": CHAT, "messages": HI, "max_tokens": 20},
    "/api/v0/chat/completions": {"model": CHAT, "messages": HI},
    "/api/v1/chat": {"model": CHAT, "input": "hi"},
}


def last_event(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    frames = [frame for frame in answer.text.split("\n\n") if frame and frame != "data: [DONE]"]
    value: dict[str, Any] = json.loads(frames[-1].rpartition("data: ")[2])
    return value


def refuse(front: Front, *, pause: float = 0.0, text: str = "") -> None:
    """Have every job refused, after a pause in seconds and some text."""

    def script(job: Submit) -> Script:
        said = front.engine.outputs(job, front.engine.encode(text), None)
        return [pause, *said, RequestOutput(job.request_id, [], finish_reason="error", error=FULL)]

    front.engine.script = script


@pytest.mark.parametrize("path", STREAMS)
async def test_a_queue_that_is_full_is_a_status_if_it_is_known_at_once(path: str) -> None:
    async with open_front() as front:
        refuse(front)
        refused = await front.post(path, STREAMS[path] | {"stream": True})
        assert refused.status_code == 429, refused.text
        assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("3", "2500")
        assert refused.json()["error"]["message"] == FULL.message


@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_that_has_begun_ends_with_the_reason(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST_SIGN_SECONDS", 0.001)
    async with open_front() as front:
        # A response's stream begins when nothing is heard for a while, the others' with the first token.
        refuse(front, pause=0.1, text="" if path == "/v1/responses" else "hello world")
        answer = await front.post(path, STREAMS[path] | {"stream": True})
        event = last_event(answer)
        if path == "/v1/responses":
            assert event["type"] == "response.failed"
            assert event["response"]["error"] == {"code": "rate_limit_exceeded", "message": FULL.message}
        elif path == "/v1/messages":
            assert event["type"] == "error"
            assert event["error"] == {"type": "rate_limit_error", "message": FULL.message}
        elif path == "/api/v1/chat":
            assert event["type"] == "chat.end" and FULL.message in answer.text
            assert '"type":"rate_limit_exceeded"' in answer.text
        else:
            assert event["error"] == {
                "message": FULL.message,
                "type": "requests",
                "param": None,
                "code": "rate_limit_exceeded",
            }


class ClockFromTheFirstLook:
    """Stands still until it is looked at, however long the client takes to start."""

    def __init__(self) -> None:
        self._first: int | None = None

    def __call__(self) -> int:
        self._first = self._first or microseconds()
        return microseconds() - self._first + DAY


async def test_codex_waits_as_long_as_it_is_told_and_gets_through(tmp_path: Path) -> None:
    codex_binary()
    ada = Principal("ada-id", "ada", limits=Limits(requests_per_minute=60))
    ledger = Ledger(None, lambda: DAY)
    async with open_front(ledger=ledger, identify=lambda headers: ada) as front, listening(front) as base_url:
        front.engine.models[CHAT] = model_ready(CHAT, max_model_len=500_000, num_kv_blocks=50_000)
        front.engine.tokens_per_step = 4
        write_config(tmp_path, base_url, CHAT, retries=2)
        ledger.charge({ada: Usage(num_requests=63)})  # the next one may come in 4 s, longer than Codex would wait
        ledger.clock = ClockFromTheFirstLook()
        run = await asyncio.to_thread(run_codex, "say hello", tmp_path)
        assert run.status == 0, run
        assert [message["text"] for message in run.items("agent_message")] == ["hello world"]
        assert any("429 Too Many Requests" in event.get("message", "") for event in run.events)
