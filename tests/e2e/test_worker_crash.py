"""A real worker is killed, brought down or hung at work: every client gets what it would have got anyway."""

import concurrent.futures
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from frail_worker import DEADLY, ENDLESS
from server_process import ServerProcess
from tiny_encoders import SIZES, WORDS, write_tokenizer
from tiny_models import make_tiny, make_tiny_tokenizer
from transformers import BertConfig, BertModel

SUPPORT = Path(__file__).parents[1] / "support"
NUM_TOKENS = 250
SOON = 60.0


class Streams:
    """What several clients have had so far."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.num_events: dict[str, int] = {}

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        answer = httpx.post(self._server.base_url + path, json=body, timeout=SOON)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stream(self, name: str, path: str, body: dict[str, Any]) -> list[Any]:
        """The events of a stream, which is well formed."""
        events = []
        url = self._server.base_url + path
        with httpx.stream("POST", url, json=body | {"stream": True}, timeout=SOON) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    events.append(json.loads(line.removeprefix("data: ")))
                    self.num_events[name] = len(events)
        return events


def completion(streams: Streams, name: str, **options: Any) -> Any:
    """Text, log probabilities and usage of a streamed completion."""
    body = {"model": "chat", "prompt": "the quick brown fox", "max_tokens": NUM_TOKENS, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}
    *chunks, last = streams.stream(name, "/v1/completions", body | options)
    choices: dict[int, Any] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            text, tops, reason = choices.get(choice["index"], ("", [], None))
            assert reason is None, "a choice went on after its end"
            tops = tops + ((choice["logprobs"] or {}).get("tokens") or [])
            choices[choice["index"]] = text + choice["text"], tops, choice["finish_reason"]
    assert last["usage"]["completion_tokens"] == len(choices) * NUM_TOKENS
    return choices


def response(streams: Streams, name: str) -> Any:
    body = {"model": "chat", "input": "water", "max_output_tokens": NUM_TOKENS, "ignore_eos": True, "seed": 3}
    events = streams.stream(name, "/v1/responses", body)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    final = events[-1]["response"]
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == final["output"][0]["content"][0]["text"]
    return text, final["status"], final["usage"]["output_tokens"]


def background_response(streams: Streams) -> Any:
    body = {"model": "chat", "input": "water", "max_output_tokens": NUM_TOKENS, "ignore_eos": True, "seed": 4}
    made = streams.ask("/v1/responses", body | {"background": True})
    deadline = time.monotonic() + SOON
    while (now := httpx.get(f"{streams._server.base_url}/v1/responses/{made['id']}").json())["status"] in (
        "queued",
        "in_progress",
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return now["status"], now["output"][0]["content"][0]["text"]


def structured_chat(streams: Streams, name: str) -> Any:
    item = {"enum": ["water", "press", "turn", "dog"]}
    schema = {"type": "array", "items": item, "minItems": 60, "maxItems": 60}
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "list"}],
        "seed": 5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "words", "schema": schema}},
    }
    chunks = streams.stream(name, "/v1/chat/completions", body)
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert len(json.loads(text)) == 60
    return text


def tool_call(streams: Streams, name: str) -> Any:
    colours = {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 40, "maxItems": 40}
    parameters: Any = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"colours": colours},
        "required": ["colours"],
    }
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "paint"}],
        "seed": 8,
        "tools": [{"type": "function", "function": {"name": "paint", "parameters": parameters}}],
        "tool_choice": {"type": "function", "function": {"name": "paint"}},
    }
    deltas = [chunk["choices"][0]["delta"] for chunk in streams.stream(name, "/v1/chat/completions", body)]
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls") or ()]
    arguments = "".join(call.get("arguments") or "" for call in calls)
    assert len(json.loads(arguments)["colours"]) == 40
    return [call["name"] for call in calls if call.get("name")], arguments


def embeddings(streams: Streams) -> Any:
    """Of one request after the other, for as long as the streams take about."""
    vectors = []
    for number in range(8):
        texts = [" ".join(WORDS[number:] + WORDS[:index]) for index in range(12)]
        vectors.append(
            [each["embedding"] for each in streams.ask("/v1/embeddings", {"model": "e", "input": texts})["data"]]
        )
    return vectors


def run_mixed_load(server: ServerProcess, meanwhile: Callable[[Streams], None]) -> dict[str, Any]:
    """What clients of every kind get at once; random draws have a given seed, so that they can be compared."""
    streams = Streams(server)
    jobs: dict[str, Callable[[], Any]] = {
        "greedy": lambda: completion(streams, "greedy", temperature=0),
        "sampled": lambda: completion(streams, "sampled", seed=1),
        "two": lambda: completion(streams, "two", seed=2, n=2),
        "logprobs": lambda: completion(streams, "logprobs", seed=6, logprobs=2),
        "penalties": lambda: completion(
            streams, "penalties", seed=7, presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.1
        ),
        "response": lambda: response(streams, "response"),
        "background": lambda: background_response(streams),
        "structured": lambda: structured_chat(streams, "structured"),
        "tool": lambda: tool_call(streams, "tool"),
        "embeddings": lambda: embeddings(streams),
    }
    streamed = ("greedy", "sampled", "two", "logprobs", "penalties", "response", "tool")
    with concurrent.futures.ThreadPoolExecutor(len(jobs) + 1) as pool:
        unseeded = pool.submit(completion, streams, "unseeded")  # its draws are its own, but it must be whole
        running = {name: pool.submit(job) for name, job in jobs.items()}
        until(lambda: all(streams.num_events.get(name, 0) > 20 for name in streamed))
        meanwhile(streams)
        assert unseeded.result()[0][2] == "length"
        return {name: job.result() for name, job in running.items()}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class FrailServer(ServerProcess):
    """A server whose workers certain prompts harm, and begin at once."""

    def __init__(self, models: list[str], home: Path, *arguments: str) -> None:
        self._workers = home.with_name("workers")
        environment = {"WORKERS_FILE": str(self._workers)}
        super().__init__(models, home=home, arguments=list(arguments), environment=environment)
        self._command[1:3] = [str(SUPPORT / "frail_worker.py")]

    @property
    def worker_pid(self) -> int:
        return int(self._workers.read_text().split()[-1])


def assert_nothing_is_held(server: ServerProcess) -> None:
    def value(name: str) -> set[float]:
        lines = httpx.get(f"{server.base_url}/metrics").text.splitlines()
        return {float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{")}

    until(lambda: value("vllm:kv_cache_usage_perc") | value("vllm:num_requests_running") == {0.0})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("models")
    chat = make_tiny_tokenizer(make_tiny("llama", folder / "chat", max_position_embeddings=2048))
    write_tokenizer(folder / "e")
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=16, max_position_embeddings=64, **SIZES)).save_pretrained(folder / "e")
    arguments = ["--dtype", "float32", "--num-threads", "1", "--kv-cache-memory", "64MiB", "--watchdog-timeout", "3"]
    models = [str(chat), str(folder / "e")]
    with FrailServer(models, folder / "home", *arguments, "--api-processes", "2") as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_clients_get_the_same_when_the_worker_is_killed_twice(server: ServerProcess) -> None:
    expected = run_mixed_load(server, lambda streams: None)

    def kill_twice(streams: Streams) -> None:
        first = server.worker_pid
        os.kill(first, signal.SIGKILL)
        until(lambda: server.worker_pid != first)
        before = dict(streams.num_events)
        until(lambda: any(streams.num_events[name] > number for name, number in before.items()))
        os.kill(server.worker_pid, signal.SIGKILL)

    assert run_mixed_load(server, kill_twice) == expected
    assert_nothing_is_held(server)


def innocent(streams: Streams, number: int) -> Any:
    return completion(streams, str(number), seed=number)


def test_only_the_request_that_brings_workers_down_fails(server: ServerProcess) -> None:
    streams = Streams(server)
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        expected = list(pool.map(lambda number: innocent(streams, number), range(5)))
        streams.num_events.clear()
        running = [pool.submit(innocent, streams, number) for number in range(5)]
        until(lambda: len(streams.num_events) == 5)
        body = {"model": "chat", "prompt": DEADLY, "max_tokens": 4}
        failed = httpx.post(f"{server.base_url}/v1/completions", json=body, timeout=SOON)
        assert [each.result() for each in running] == expected
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "worker_crashed")
    assert_nothing_is_held(server)


def test_a_worker_that_hangs_is_replaced_and_its_stacks_are_in_the_log(server: ServerProcess) -> None:
    streams = Streams(server)
    expected = innocent(streams, 1)
    streams.num_events.clear()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(innocent, streams, 1)
        until(lambda: bool(streams.num_events))
        body = {"model": "chat", "prompt": ENDLESS, "max_tokens": 4}
        with pytest.raises(httpx.ReadTimeout):  # its client leaves before the next worker has it
            httpx.post(f"{server.base_url}/v1/completions", json=body, timeout=2)
        assert running.result() == expected
    log = server.log
    assert "made no progress for 3 s" in log and re.search(r"frail_worker.py.* in launch", log)
    assert httpx.get(f"{server.base_url}/health").json()["worker"]["restarts"] > 0
    until(lambda: httpx.get(f"{server.base_url}/ready").status_code == 200)
