"""A real server is killed, drained and started again: what was stored is there, what was not finished is made again."""

import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, NotFoundError, OpenAI
from openai.types.responses import Response
from server_process import ServerProcess
from tiny_models import make_tiny, make_tiny_tokenizer

SAMPLED: dict[str, Any] = {"temperature": 1.0, "max_output_tokens": 600, "extra_body": {"seed": 5, "ignore_eos": True}}


def connect(server: ServerProcess, key: str = "mine") -> OpenAI:
    return OpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0, _strict_response_validation=True)


def status_other_than(client: OpenAI, response_id: str, *statuses: str) -> str:
    """The response's status when it is none of these."""
    deadline = time.monotonic() + 60
    while (status := client.responses.retrieve(response_id).status) in statuses:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return str(status)


def begin(client: OpenAI, **options: Any) -> str:
    """A background response that is being made."""
    made = client.responses.create(model="tiny", input="on and on", background=True, **options)
    assert status_other_than(client, made.id, "queued") == "in_progress"
    return made.id


def finished(client: OpenAI, response_id: str) -> Response:
    """The response when it is not being made any more."""
    status_other_than(client, response_id, "queued", "in_progress")
    return client.responses.retrieve(response_id)


def test_what_is_stored_survives_and_what_is_not_finished_is_made_again(tmp_path: Path) -> None:
    folder = make_tiny_tokenizer(make_tiny("llama", tmp_path / "tiny", max_position_embeddings=100_000))
    arguments = ["--dtype", "float32", "--num-threads", "1", "--kv-cache-memory", "256MiB", "--drain-timeout", "0.1"]
    home = tmp_path / "home"
    server = ServerProcess([str(folder)], home=home, arguments=arguments)
    with server, connect(server) as client:
        conversation = client.conversations.create(items=[{"role": "user", "content": "one"}], metadata={"k": "v"})
        with client.responses.create(
            model="tiny", input="two", conversation=conversation.id, stream=True, max_output_tokens=8
        ) as stream:
            events = [event.model_dump() for event in stream]
        response = client.responses.retrieve(events[0]["response"]["id"])
        whole = client.responses.create(model="tiny", input="on and on", **SAMPLED)
        cut = begin(client, **SAMPLED)
        endless = begin(client, extra_body={"ignore_eos": True})
        server.stop(signal.SIGKILL)
    # as if the time had passed after which the killed process counts as gone
    database = sqlite3.connect(home / "state.sqlite3")
    with database:
        assert database.execute("UPDATE running SET lease_until = 1").rowcount == 2
    database.close()
    with ServerProcess([str(folder)], home=home, arguments=arguments) as server, connect(server) as client:
        assert client.responses.retrieve(response.id) == response
        with client.responses.retrieve(response.id, stream=True, starting_after=3) as again:
            assert [event.model_dump() for event in again] == events[4:]
        assert client.conversations.retrieve(conversation.id).metadata == {"k": "v"}
        assert len(client.conversations.items.list(conversation.id).data) == 2 + len(response.output)
        with connect(server, "other") as other, pytest.raises(NotFoundError):
            other.responses.retrieve(response.id)
        made = finished(client, cut)
        assert (made.status, made.output_text) == ("incomplete", whole.output_text)
        assert client.responses.retrieve(endless).status in ("queued", "in_progress")
        cut = begin(client, **SAMPLED)
        with client.responses.retrieve(cut, stream=True) as followed:
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(APIError, match="made again when the server is back"):
                list(followed)
        assert server.process.wait(30) == 0
        assert not (home / "state.sqlite3-wal").exists(), "all is in the file itself"
    with ServerProcess([str(folder)], home=home, arguments=arguments) as server, connect(server) as client:
        with client.responses.retrieve(cut, stream=True, starting_after=1) as followed:
            *_, last = followed
        assert last.type == "response.incomplete" and last.response.output_text == whole.output_text
        assert client.responses.cancel(endless).status == "cancelled"
        assert server.stop() == 0
        assert "Traceback" not in server.log
