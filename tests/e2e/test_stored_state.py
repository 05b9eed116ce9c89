"""A real server is killed and started again: what was stored is there, what was unfinished has failed."""

import asyncio
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError, OpenAI
from server_process import ServerProcess
from starlette.datastructures import Headers
from tiny_models import make_tiny, make_tiny_tokenizer

from penstock.serving.keys.doorkeeper import anybody
from penstock.serving.store.database import Database
from penstock.serving.store.store import open_store

ENDLESS: dict[str, Any] = {"background": True, "extra_body": {"ignore_eos": True}}


def connect(server: ServerProcess, key: str = "mine") -> OpenAI:
    return OpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0, _strict_response_validation=True)


def begin_endless(client: OpenAI) -> str:
    """A background response that fills the model's context, which takes longer than the test waits."""
    made = client.responses.create(model="tiny", input="on and on", **ENDLESS)
    deadline = time.monotonic() + 30
    while client.responses.retrieve(made.id).status == "queued":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert client.responses.retrieve(made.id).status == "in_progress"
    return made.id


def test_stored_state_survives_the_servers_death(tmp_path: Path) -> None:
    folder = make_tiny_tokenizer(make_tiny("llama", tmp_path / "tiny", max_position_embeddings=100_000))
    arguments = ["--dtype", "float32", "--num-threads", "1", "--kv-cache-memory", "256MiB"]
    home = tmp_path / "home"
    with ServerProcess([str(folder)], home=home, arguments=arguments) as server, connect(server) as client:
        conversation = client.conversations.create(items=[{"role": "user", "content": "one"}], metadata={"k": "v"})
        with client.responses.create(
            model="tiny", input="two", conversation=conversation.id, stream=True, max_output_tokens=8
        ) as stream:
            events = [event.model_dump() for event in stream]
        response = client.responses.retrieve(events[0]["response"]["id"])
        unfinished = begin_endless(client)
        server.stop(signal.SIGKILL)
    # as if the time had passed after which the killed process counts as gone
    database = sqlite3.connect(home / "state.sqlite3")
    with database:
        assert database.execute("UPDATE running SET lease_until = 0").rowcount == 1
    database.close()
    with ServerProcess([str(folder)], home=home, arguments=arguments) as server, connect(server) as client:
        assert client.responses.retrieve(response.id) == response
        with client.responses.retrieve(response.id, stream=True, starting_after=3) as again:
            assert [event.model_dump() for event in again] == events[4:]
        lost = client.responses.retrieve(unfinished)
        assert lost.status == "failed" and lost.error is not None and lost.error.code == "server_error"
        assert client.conversations.retrieve(conversation.id).metadata == {"k": "v"}
        assert len(client.conversations.items.list(conversation.id).data) == 2 + len(response.output)
        with connect(server, "other") as other, pytest.raises(NotFoundError):
            other.responses.retrieve(response.id)
        unfinished = begin_endless(client)
        with client.responses.retrieve(unfinished, stream=True) as followed:
            server.process.send_signal(signal.SIGTERM)
            assert [event.type for event in followed][-1] == "response.failed"
        assert server.stop() == 0
    stored = asyncio.run(read(home / "state.sqlite3", unfinished))
    assert stored["status"] == "failed" and "stopped" in stored["error"]["message"]


async def read(path: Path, response_id: str) -> dict[str, Any]:
    store = open_store(Database(path))
    try:
        return await store.responses.get(anybody(Headers({"authorization": "Bearer mine"})).id, response_id)
    finally:
        await store.database.close()
