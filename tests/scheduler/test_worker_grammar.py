"""Grammars in the worker process: compiled beside the steps, and hostile ones without harm to anybody else."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from test_worker import Client
from tiny_models import make_tiny, make_tiny_tokenizer
from tokenizers import Tokenizer

from penstock.scheduler.compiling import MAX_PENDING
from penstock.scheduler.config import EngineConfig, ModelSpec, WorkerConfig
from penstock.scheduler.launch import WorkerProcess, start_worker
from penstock.scheduler.messages import Cancel, RequestOutput, StepOutputs, Submit
from penstock.scheduler.sampling_params import SamplingParams

SLOW = 'start: %json {"type": "integer", "multipleOf": 999983}'  # for longer than the limit
DEEP = "\n".join(f"r{number}: r{number + 1}" for number in range(60_000)) + '\nr60000: "a"\nstart: r0'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(make_tiny("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def worker(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    config = WorkerConfig(
        address=f"ipc://{tmp_path_factory.mktemp('socket') / 'worker.sock'}",
        engine=EngineConfig(device="cpu", kv_cache_memory=64 << 20, num_threads=1),
        models=(ModelSpec("m", str(folder), "generate", "float32"),),
    )
    process = start_worker(config)
    yield process
    process.stop()


@pytest.fixture
def client(worker: WorkerProcess) -> Iterator[Client]:
    client = Client(worker.config.address)
    client.until_ready()
    yield client
    client.socket.close()


def job(request_id: str, grammar: str, *, model: str = "m", max_tokens: int = 8) -> Submit:
    params = SamplingParams(
        max_tokens=max_tokens, seed=0, grammar=grammar, grammar_param="tools", ignore_eos=not grammar
    )
    return Submit(request_id, model, [50, 60, 70], params, time.time())


def text(outputs: list[RequestOutput], folder: Path) -> str:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tokenizer.decode([token_id for output in outputs for token_id in output.token_ids])


def test_a_grammar_is_compiled_and_kept(client: Client, folder: Path) -> None:
    for name in ("first", "again"):
        client.send(job(name, 'start: "abc" | "def"'))
        outputs = client.outputs_until_end(name)
        assert outputs[-1].finish_reason == "stop"
        assert text(outputs, folder) in ("abc", "def")


def test_refusals_are_of_their_own_job(client: Client) -> None:
    client.send(job("deep", DEEP))
    client.send(job("bad", "start: ("))
    client.send(job("elsewhere", "start: (", model="none"))
    client.send(job("stayer", "", max_tokens=20))
    assert client.outputs_until_end("stayer")[-1].error is None
    client.send(job("after", 'start: "a"'))
    assert client.outputs_until_end("after")[-1].error is None
    client.send(job("deep again", DEEP))
    error = client.outputs_until_end("deep again")[-1].error
    assert error is not None
    assert (error.code, error.status, error.param) == ("invalid_grammar", 400, "tools")


def test_a_fallback_stands_in_for_a_grammar_that_does_not_compile(client: Client, folder: Path) -> None:
    good, bad = 'start: "abc"', "start: ("
    for grammar, fallback in ((bad, good), (good, bad)):
        tried = job("tried", grammar)
        client.send(replace(tried, sampling=replace(tried.sampling, grammar_fallback=fallback)))
        assert text(client.outputs_until_end("tried"), folder) == "abc"


def test_errors_name_the_field_of_the_rule_at_fault(client: Client) -> None:
    rules = ["start: one two three", "one: /a/", "two: /(/", "three: @three_text"]
    grammars = [{"lark_grammar": "\n".join(rules)}, {"name": "three_text", "lark_grammar": "start: unknown"}]
    for source, param in (
        ({"grammars": [{"lark_grammar": "\n".join(rules[:3]).replace(" three", "")}]}, "tools.1"),
        ({"grammars": grammars}, "tools.2"),
    ):
        tried = job("tried", json.dumps(source))
        params = {"two": "tools.1", "three_text": "tools.2"}
        client.send(replace(tried, sampling=replace(tried.sampling, grammar_params=params)))
        error = client.outputs_until_end("tried")[-1].error
        assert error is not None and (error.code, error.param) == ("invalid_grammar", param)


def test_a_job_is_cancelled_while_its_grammar_is_compiled(client: Client, worker: WorkerProcess) -> None:
    client.send(job("slow", SLOW))
    client.send(Cancel(["slow"]))
    client.send(job("slow", 'start: "a"'))
    (output,) = client.outputs_until_end("slow")
    assert output.finish_reason == "stop"


def test_it_uses_no_processor_time_while_a_grammar_is_tried_out(client: Client, worker: WorkerProcess) -> None:
    client.send(job("slow", SLOW))
    process = psutil.Process(worker.pid)
    while not any(child.cpu_percent(0.1) > 10 for child in process.children()):
        pass
    before = process.cpu_times()
    time.sleep(0.5)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system <= 0.05


def test_too_many_grammars_are_refused_and_counted(client: Client) -> None:
    """A job of an earlier test, whose client is gone, may still wait."""
    slow = [job(f"slow-{number}", f"{SLOW}\n// {number}") for number in range(MAX_PENDING + 1)]
    for each in slow:
        client.send(each)
    message = client.receive()
    while not (isinstance(message, StepOutputs) and message.outputs):
        message = client.receive()
    (refused,) = message.outputs
    assert refused.error is not None and refused.error.retry_after
    assert (refused.error.status, refused.error.code) == (429, "rate_limit_exceeded")
    assert message.stats["m"].refusals == {"grammars": 1}
    num_waiting = int(refused.request_id.removeprefix("slow-"))
    assert message.stats["m"].num_waiting_tokens >= 3 * num_waiting  # they have their places
    client.send(Cancel([each.request_id for each in slow]))
