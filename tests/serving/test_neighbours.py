"""What concerns another process is handed to it; where that one is not there, nothing of the request is lost."""

from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from penstock.serving import neighbours
from penstock.serving.drain import Drain
from penstock.serving.handlers.background import ResponseRuns
from penstock.serving.keys.doorkeeper import anybody
from penstock.serving.neighbours import Neighbours
from penstock.serving.store.database import Database
from penstock.serving.store.store import open_store


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(await Request(scope, receive).body())(scope, receive, send)


async def _never(name: str, ttl: float | None) -> None:
    raise AssertionError("nobody asked for a model")


async def _ask(folder: Path, *pieces: bytes) -> bytes:
    """What the second process of two answers alone to a call that is the first's business."""
    second = Neighbours(folder, 1, 2)
    app = second.joined(_echo, ResponseRuns(open_store(Database(None))), _never, anybody, Drain())
    incoming: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
        for number, piece in enumerate(pieces, start=1)
    ]
    outgoing: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0) if incoming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        outgoing.append(message)

    path = "/api/v1/models/load"
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode()}
    scope |= {"query_string": b"", "headers": [], "server": ("127.0.0.1", 1234)}
    try:
        await app(scope, receive, send)
    finally:
        await second.close()
    return b"".join(message.get("body", b"") for message in outgoing)


async def test_a_call_that_finds_nobody_is_answered_here_with_its_body(tmp_path: Path) -> None:
    assert await _ask(tmp_path, b'{"model"', b': "m"}') == b'{"model": "m"}'


async def test_a_body_without_end_is_not_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    async def read_body(receive: Receive) -> tuple[bytes, bool]:
        body, is_whole = await original(receive)
        read.append(len(body))
        return body, is_whole

    original = neighbours._read_body
    monkeypatch.setattr(neighbours, "_read_body", read_body)
    monkeypatch.setattr(neighbours, "MAX_BODY_BYTES", 10)
    assert await _ask(tmp_path, *[b"1234"] * 5) == b"1234" * 5, "the application decides what is too large"
    assert read == [12]
