"""Models that come and go on a real server: loaded by requests and by hand, unloaded when idle, evicted, aliased."""

import asyncio
import io
import json
import re
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import httpx2
import pytest
from server_process import ServerProcess
from tiny_models import make_tiny, make_tiny_tokenizer

from penstock.serving import cli


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models on the shelf."""
    home = tmp_path_factory.mktemp("home")
    for name, family in (("b", "llama"), ("c", "qwen3")):
        make_tiny_tokenizer(make_tiny(family, home / "models" / name))
    return home


@pytest.fixture(scope="module")
def server(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One model named, room for one more."""
    named = make_tiny_tokenizer(make_tiny("llama", tmp_path_factory.mktemp("named") / "a", seed=1))
    arguments = ["--max-resident-models", "2", "--alias", "gpt-4o=b", "--num-threads", "1"]
    with ServerProcess([str(named)], home=home, arguments=arguments) as process:
        yield process


@pytest.fixture(autouse=True)
def only_the_named_model(server: ServerProcess) -> Iterator[None]:
    """Each test begins and ends with the named model alone in memory."""
    yield
    for name in states(server).keys() - {"a"}:
        penstock(server, "unload", name)
    assert states(server) == {"a": "loaded"}


def penstock(server: ServerProcess, command: str, *arguments: str, status: int = 0) -> str:
    """What a command prints."""
    home = server._command[server._command.index("--home") + 1]
    where = ["--port", server.base_url.rpartition(":")[2], "--home", home]
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        done = cli.main([command, *arguments, *where])
    assert done == status, output.getvalue()
    return output.getvalue()


def states(server: ServerProcess) -> dict[str, str]:
    """What is in memory, or on its way."""
    return {row["id"]: row["state"] for row in json.loads(penstock(server, "ps", "--json"))}


def complete(server: ServerProcess, model: str, **fields: Any) -> httpx2.Response:
    body = {"model": model, "prompt": "water", "max_tokens": 4, "ignore_eos": True, **fields}
    return httpx2.post(f"{server.base_url}/v1/completions", json=body, timeout=60)


async def test_concurrent_first_requests_load_a_model_once(server: ServerProcess) -> None:
    listed = httpx2.get(f"{server.base_url}/v1/models").json()["data"]
    assert {m["id"]: m["state"] for m in listed} == {
        "a": "loaded",
        "b": "not-loaded",
        "c": "not-loaded",
        "gpt-4o": "not-loaded",
    }
    answers = await asyncio.gather(*(asyncio.to_thread(complete, server, name) for name in ["b", "gpt-4o"] * 4))
    assert {(answer.status_code, answer.json()["model"]) for answer in answers} == {(200, "b")}
    assert server.log.count("loaded b in") == 1
    assert 'vllm:num_requests_running{model_name="b"}' in httpx2.get(f"{server.base_url}/metrics").text


def test_a_model_loaded_by_a_request_makes_room_for_the_next(server: ServerProcess) -> None:
    for name in ("b", "c", "b"):
        assert complete(server, name).status_code == 200
        assert states(server) == {"a": "loaded", name: "loaded"}
    assert 'vllm:num_requests_running{model_name="c"}' not in httpx2.get(f"{server.base_url}/metrics").text


def test_a_model_in_use_is_neither_evicted_nor_unloaded(server: ServerProcess) -> None:
    body = {"model": "b", "prompt": "water", "max_tokens": 480, "ignore_eos": True, "stream": True}
    with httpx2.stream("POST", f"{server.base_url}/v1/completions", json=body, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        refused = complete(server, "c")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "out_of_memory")
        assert "b (has 1 requests in flight)" in refused.text and refused.headers["retry-after"]
        assert "has 1 requests in flight" in penstock(server, "unload", "b", status=1)
        assert list(lines)[-1] == "data: [DONE]"
    assert complete(server, "c").status_code == 200


def test_an_idle_model_goes_after_its_ttl(server: ServerProcess) -> None:
    assert complete(server, "c", ttl=1).status_code == 200
    deadline = time.monotonic() + 20
    while states(server) != {"a": "loaded"}:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.05)
    assert "unloading c, idle for 1 s" in server.log


def test_models_are_managed_by_commands(server: ServerProcess) -> None:
    assert re.search(r"^b is loaded \(in [\d.]+ s\)$", penstock(server, "load", "b"))
    assert re.search(r"^b +loaded .* by hand only$", penstock(server, "ps"), re.MULTILINE)
    assert re.search(r"^c +chat +qwen3 .* not-loaded$", penstock(server, "ls"), re.MULTILINE)
    refused = complete(server, "c")  # both places are taken for good
    assert refused.status_code == 503 and "b (is to stay resident)" in refused.text
    assert "b is unloaded" in penstock(server, "unload", "b")
    assert "is not loaded" in penstock(server, "unload", "b", status=1)
    assert "In memory: a (of 3 models)" in penstock(server, "status")
    assert "loaded b in" in penstock(server, "log")
    assert "uses a; unload it" not in penstock(server, "rm", "a", "--yes", status=1)  # it is not in the home
    assert penstock(server, "chat", "c", "-p", "water").strip()


def test_a_model_that_cannot_be_loaded_hurts_nobody(server: ServerProcess, home: Path) -> None:
    broken = home / "models" / "broken"
    make_tiny_tokenizer(make_tiny("llama", broken))
    (broken / "model.safetensors").write_bytes(b"no weights")
    refused = complete(server, "broken")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found"), refused.text
    assert "could not be loaded" in refused.text
    assert complete(server, "a").status_code == 200
    assert "broken is deleted" in penstock(server, "rm", "broken", "--yes")
    assert "broken" not in penstock(server, "ls")
