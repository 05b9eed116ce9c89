"""What a process that drains refuses, how long it waits, and what it counts."""

import asyncio
from typing import Any

import pytest
from fake_engine import CHAT, open_front, until

from penstock.serving import drain as module
from penstock.serving.drain import Drain


@pytest.mark.parametrize(("timeout", "seconds"), [(0.0, "1"), (29.2, "30"), (3600.0, "60")])
async def test_every_protocol_hears_when_to_come_back(timeout: float, seconds: str) -> None:
    drain = Drain(timeout)
    async with open_front(drain=drain) as front:
        assert (await front.chat()).status_code == 200
        drain.begin()
        for path, kind in (
            ("/v1/chat/completions", "server_error"),
            ("/v1/responses", "server_error"),
            ("/v1/embeddings", "server_error"),
            ("/v1/messages", "overloaded_error"),
            ("/api/v1/chat", "internal_error"),
        ):
            refused = await front.post(path, {"model": CHAT})
            assert (refused.status_code, refused.json()["error"]["type"]) == (503, kind)
            assert (refused.headers["retry-after"], refused.headers["connection"]) == (seconds, "close")
        assert refused.json()["error"]["code"] == "server_draining"
        assert drain.num_requests == 0


async def test_what_reads_or_ends_something_goes_on() -> None:
    drain = Drain(60)
    async with open_front(drain=drain) as front:
        front.engine.script = lambda job: [60.0]
        made = (await front.post("/v1/responses", {"model": CHAT, "input": "hi", "background": True})).json()
        drain.begin()
        for path in ("/health", "/metrics", "/v1/models", f"/v1/responses/{made['id']}"):
            answer = await front.http.get(path)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        cancelled = await front.http.post(f"/v1/responses/{made['id']}/cancel")
        assert cancelled.json()["status"] == "cancelled"
        assert (await front.http.delete(f"/v1/responses/{made['id']}")).status_code == 200


async def test_it_waits_for_requests_and_for_what_runs_in_the_background() -> None:
    drain = Drain(3600)
    background = 1
    drain.num_background = lambda: background
    scope: dict[str, Any] = {"method": "POST", "path": "/v1/embeddings"}
    with drain.counting(scope), drain.counting(scope | {"method": "GET"}):
        assert drain.num_requests == 1 and not drain.begun
        waiting = asyncio.create_task(drain.wait())
        await until(lambda: drain.begun)
        background = 0
        await asyncio.sleep(2 * module._LOOK_INTERVAL)
        assert not waiting.done()
    assert await waiting is True


async def test_it_tells_how_it_goes_and_what_it_has_cut_off(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REPORT_INTERVAL", 0.01)
    caplog.set_level("INFO")
    drain = Drain(0.2, "API process 3")
    drain.num_background = lambda: 2
    with drain.counting({"method": "POST", "path": "/"}):
        assert await drain.wait() is False
    said = [record.message for record in caplog.records]
    left = "1 request in flight, 2 background responses"
    assert said[0] == f"API process 3: draining: {left}, at most 0.2 s; another Ctrl-C or SIGTERM ends at once"
    assert f"API process 3: draining: {left}, 0 s left" in said[1:-1]
    assert said[-1] == f"API process 3: the time to drain is over with {left}"


async def test_a_body_that_nobody_needs_is_read_but_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UNREAD_SECONDS", 0.01)
    pieces = [{"type": "http.request", "body": b"x", "more_body": True}] * 3

    async def receive() -> dict[str, Any]:
        if not pieces:
            await asyncio.Event().wait()
        return pieces.pop()

    await module._read_all(receive)
    assert pieces == []
