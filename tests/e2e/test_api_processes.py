"""Two API processes and one worker are one server: models, stored responses and running ones are the same from both."""

import concurrent.futures
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
from openai import OpenAI
from server_process import ServerProcess

CHAT = "smollm2-135m-instruct"
EMBED = "all-minilm-l6-v2"
KEY = {"authorization": "Bearer none"}
SOON = 30.0


class Pair:
    """The server, and clients that reach one process of it."""

    def __init__(self, server: ServerProcess, sockets: list[Path]) -> None:
        self.server = server
        self.processes = [
            httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://api", headers=KEY, timeout=60)
            for path in sockets
        ]

    def openai(self, index: int) -> OpenAI:
        http_client: Any = self.processes[index]
        return OpenAI(api_key="none", base_url="http://api/v1", http_client=http_client, max_retries=0)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Over the port, in a connection of its own: whichever process takes it."""
        return httpx.request(method, self.server.base_url + path, headers=KEY, timeout=60, **options)

    def resident(self, index: int) -> set[str]:
        return set(self.processes[index].get("/health").json()["models"])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def pair(starter_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    scratch = tmp_path_factory.mktemp("s")
    server = ServerProcess(
        [CHAT],
        home=starter_home,
        arguments=["--api-processes", "2"],
        environment={"TMPDIR": str(scratch)},
        timeout=120,
    )
    with server:
        until(lambda: len(list(scratch.glob("penstock-*/api-*.sock"))) == 2)
        pair = Pair(server, sorted(scratch.glob("penstock-*/api-*.sock")))
        until(lambda: pair.resident(1) == {CHAT})
        yield pair
        for process in pair.processes:
            process.close()
        assert server.stop() == 0
        assert "Traceback" not in server.log
    assert not list(scratch.glob("penstock-*"))


def test_both_stream_at_once_the_same_text(pair: Pair) -> None:
    def story(index: int) -> str:
        stream = pair.openai(index).chat.completions.create(
            model=CHAT,
            messages=[{"role": "user", "content": "Name three rivers."}],
            max_tokens=12,
            temperature=0,
            stream=True,
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(story, [0, 1, 0, 1])
    assert first
    assert others == [first] * 3
    counted = {
        process.get("/metrics").text.split("vllm:request_success_total{")[1].split("\n")[0]
        for process in pair.processes
    }
    assert len(counted) == 1
    assert counted.pop().endswith(" 4.0")


def test_a_model_comes_and_goes_in_both(pair: Pair) -> None:
    for index in (1, 0):
        answer = pair.processes[index].post("/v1/embeddings", json={"model": EMBED, "input": "water"})
        assert answer.status_code == 200, answer.text
        assert EMBED in pair.resident(0) & pair.resident(1)
        listed = [pair.ask("GET", "/api/v1/models").json() for _ in range(6)]
        assert all(listed[0] == other for other in listed), "the processes tell different things"
        answer = pair.ask("POST", "/api/v1/models/unload", json={"instance_id": EMBED})
        assert answer.status_code == 200, answer.text
        until(lambda: pair.resident(0) == pair.resident(1) == {CHAT})


def test_a_model_that_is_not_there_is_refused_in_both(pair: Pair) -> None:
    for process in pair.processes:
        answer = process.post("/v1/embeddings", json={"model": "nowhere", "input": "water"})
        assert answer.status_code == 404, answer.text


def test_a_stored_response_goes_on_in_the_other(pair: Pair) -> None:
    first = pair.openai(0).responses.create(model=CHAT, input="Say hello.", max_output_tokens=16)
    second = pair.openai(1).responses.create(
        model=CHAT, input="Again.", previous_response_id=first.id, max_output_tokens=16
    )
    assert second.previous_response_id == first.id
    assert {pair.ask("GET", f"/v1/responses/{second.id}").json()["status"] for _ in range(6)} == {second.status}


@pytest.mark.parametrize("index", [0, 1])
def test_a_running_response_is_followed_and_cancelled_from_anywhere(pair: Pair, index: int) -> None:
    made = pair.openai(index).responses.create(
        model=CHAT, input="Tell me a very long story.", background=True, max_output_tokens=4000
    )
    path = f"/v1/responses/{made.id}"
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        following = [pool.submit(pair.ask, "GET", f"{path}?stream=true") for _ in range(5)]
        until(lambda: pair.ask("GET", path).json()["status"] == "in_progress")
        cancelled = pair.ask("POST", f"{path}/cancel")
        ends = {done.result().text.strip().splitlines()[-1] for done in following}
    assert cancelled.json()["status"] == "cancelled"
    assert len(ends) == 1
    assert '"cancelled"' in ends.pop()


def test_one_speaks_in_a_conversation_at_a_time(pair: Pair) -> None:
    conversation = pair.openai(0).conversations.create().id
    body = {"model": CHAT, "input": "Tell me a long story.", "conversation": conversation, "background": True}
    made = pair.processes[0].post("/v1/responses", json=body | {"max_output_tokens": 4000}).json()
    refused = pair.processes[1].post("/v1/responses", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "conversation_locked")
    assert pair.ask("POST", f"/v1/responses/{made['id']}/cancel").status_code == 200
    assert pair.processes[1].post("/v1/responses", json=body | {"max_output_tokens": 16}).status_code == 200


def test_one_that_dies_is_replaced_and_its_jobs_end(pair: Pair) -> None:
    (sibling,) = (
        child
        for child in psutil.Process(pair.server.pid).children()
        if "penstock.serving.api_process" in child.cmdline()
    )
    body = {"model": CHAT, "prompt": "Once", "max_tokens": 4000, "stream": True, "ignore_eos": True}
    with (
        pytest.raises(httpx.RemoteProtocolError),
        pair.processes[1].stream("POST", "/v1/completions", json=body) as answer,
    ):
        for number, _ in enumerate(answer.iter_lines()):
            if number == 4:
                sibling.send_signal(signal.SIGKILL)
    until(lambda: re.search(r"its [1-9]\d* jobs are cancelled", pair.server.log) is not None)
    short = {"model": CHAT, "prompt": "Once", "max_tokens": 2}
    assert [pair.ask("POST", "/v1/completions", json=short).status_code for _ in range(6)] == [200] * 6
    assert "another one takes its place" in pair.server.log
    assert pair.processes[1].post("/v1/completions", json=short).status_code == 200
