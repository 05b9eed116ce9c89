"""Clients that go away, engines that die, errors in the middle of a stream."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fake_engine import CHAT, EMBED, Exchange, error, model_ready, open_front, until

from penstock.scheduler.messages import JobError, ModelFailed, RequestOutput, Submit
from penstock.serving import sse
from penstock.serving.handlers.anthropic.content import PING
from penstock.serving.sse import EventStream

MESSAGES = [{"role": "user", "content": "hi"}]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": CHAT, "messages": MESSAGES}),
    ("/v1/chat/completions", {"model": CHAT, "messages": MESSAGES, "n": 3}),
    ("/v1/completions", {"model": CHAT, "prompt": "hi"}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens_first", [False, True])
@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_disconnect_cancels_every_job_at_once(
    path: str, body: dict[str, Any], stream: bool, tokens_first: bool
) -> None:
    async with open_front() as front:
        engine = front.engine
        begin = engine.say if tokens_first else (lambda job: [])
        engine.script = lambda job: [*begin(job)[:1], 60.0]
        exchange = Exchange(front.app, path, body | {"stream": stream})
        n = body.get("n", 1)
        await until(
            lambda: len(engine.jobs) == n and (not stream or not tokens_first or exchange.body.count(b"hello") == n)
        )
        assert engine.num_jobs == n and engine.cancelled == []
        exchange.disconnect()
        await exchange.task
        assert sorted(engine.cancelled) == sorted(job.request_id for job in engine.jobs)
        assert engine.num_jobs == 0
        assert b"DONE" not in exchange.body
        assert '"499"' in front.app_metrics()


LOADING: list[tuple[str, dict[str, Any]]] = [
    *((path, body) for path, body in REQUESTS if "n" not in body),
    *((f"/api/v0/{path[4:]}", body) for path, body in REQUESTS if "n" not in body),
    ("/v1/messages", {"model": CHAT, "messages": MESSAGES, "max_tokens": 8}),
    ("/v1/responses", {"model": CHAT, "input": "hi"}),
    ("/api/v1/chat", {"model": CHAT, "input": "hi"}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [*LOADING, ("/v1/messages/count_tokens", LOADING[-3][1])])
async def test_a_client_may_leave_while_its_model_is_loaded(path: str, body: dict[str, Any], stream: bool) -> None:
    async with open_front() as front:
        del front.engine.models[CHAT]
        front.engine.load_answers = lambda spec: []
        asked = {name: value for name, value in body.items() if not (path.endswith("tokens") and name == "max_tokens")}
        exchange = Exchange(front.app, path, asked | ({} if path.endswith("tokens") else {"stream": stream}))
        await until(lambda: front.engine.loads == [CHAT])
        exchange.disconnect()
        await exchange.task
        assert front.engine.jobs == []


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("path", "body"), LOADING[:5])
async def test_a_stream_shows_that_it_lives_while_its_model_is_loaded(
    path: str, body: dict[str, Any], fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "PAUSE_SECONDS", 0.01)
    async with open_front() as front:
        del front.engine.models[CHAT]
        front.engine.load_answers = lambda spec: []
        exchange = Exchange(front.app, path, body | {"stream": True})
        sign = PING if path == "/v1/messages" else sse.COMMENT
        await until(lambda: exchange.body.count(sign) >= 2)
        assert exchange.body.replace(sign, b"") == b"" and front.engine.jobs == []
        front.engine._deliver(ModelFailed(CHAT, "broken") if fails else model_ready(CHAT))
        await exchange.task
        assert exchange.status == 200
        if fails:
            assert b"could not be loaded: broken" in exchange.body and front.engine.jobs == []
        else:
            assert b"hello" in exchange.body and len(front.engine.jobs) == 1


async def test_disconnect_cancels_an_embedding_job() -> None:
    async with open_front() as front:
        front.engine._embed = lambda job: until(lambda: False)  # type: ignore[assignment, method-assign]
        exchange = Exchange(front.app, "/v1/embeddings", {"model": EMBED, "input": "hi"})
        await until(lambda: front.engine.num_jobs == 1)
        exchange.disconnect()
        await exchange.task
        assert front.engine.cancelled == [front.engine.jobs[0].request_id]


@pytest.mark.parametrize("stream", [False, True])
async def test_death_of_the_worker_ends_jobs_in_flight_and_later_ones(stream: bool) -> None:
    async with open_front() as front:
        front.engine.script = lambda job: [60.0]
        exchange = Exchange(front.app, "/v1/chat/completions", REQUESTS[0][1] | {"stream": stream})
        await until(lambda: front.engine.num_jobs == 1)
        front.engine.mark_dead("exit status -9")
        await exchange.task
        assert exchange.status == 503 and b"exit status -9" in exchange.body
        assert front.engine.cancelled == []
        for response in (await front.chat(), await front.complete(stream=True), await front.embed()):
            assert "exit status -9" in error(response, 503, "engine_dead", None)
            assert int(response.headers["retry-after"]) > 0
        health = await front.http.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "dead"


async def test_a_pause_in_the_midst_of_a_stream_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "PAUSE_SECONDS", 0.01)
    async with open_front() as front:
        front.engine.script = lambda job: [*front.engine.say(job)[:1], 60.0]
        exchange = Exchange(front.app, "/v1/completions", REQUESTS[2][1] | {"stream": True})
        await until(lambda: exchange.body.count(sse.COMMENT) > 2)
        exchange.disconnect()
        await exchange.task
        assert exchange.body.startswith(b"data: {")


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_error_in_the_middle_of_a_stream_is_its_last_event(path: str, body: dict[str, Any]) -> None:
    async with open_front() as front:
        fault = JobError("the device ran out of memory", "internal_error", None, 500)

        def script(job: Submit) -> Any:
            return [*front.engine.say(job)[:1], RequestOutput(job.request_id, [], 0, "error", error=fault)]

        front.engine.script = script
        exchange = Exchange(front.app, path, body | {"stream": True})
        await exchange.task
        assert exchange.status == 200
        *_, last, rest = exchange.body.split(b"\n\n")
        assert rest == b"" and json.loads(last.removeprefix(b"data: ")) == {
            "error": {"message": fault.message, "type": "server_error", "param": None, "code": "internal_error"}
        }
        assert exchange.sent[-1]["more_body"] is False


async def test_stream_is_not_buffered_by_proxies() -> None:
    async with open_front() as front:
        headers = (await front.chat(stream=True)).headers
        assert headers["cache-control"] == "no-cache" and headers["x-accel-buffering"] == "no"
        assert "content-length" not in headers and headers["x-request-id"]


async def test_first_chunk_carries_the_first_token() -> None:
    async with open_front() as front:
        exchange = Exchange(front.app, "/v1/chat/completions", REQUESTS[0][1] | {"stream": True})
        await exchange.task
        first = exchange.sent[1]["body"]
        assert b'"role":"assistant"' in first and b'"content":"hello"' in first


async def test_a_fault_of_ours_in_the_middle_of_a_stream_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        raise RuntimeError("what nobody has foreseen")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/v1/completions", "headers": [], "state": {"request_id": "req_1"}}
    await EventStream(broken())(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
    assert b"internal_error" in sent[-1]["body"] and b"foreseen" not in sent[-1]["body"]
    assert "req_1" in caplog.text and "what nobody has foreseen" in caplog.text
