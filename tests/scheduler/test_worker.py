"""The device worker as a real process: its messages, its ends, and jobs of several API processes at once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import zmq
from engine_harness import Oracle
from starter_models import minilm_folder
from tiny_models import make_tiny

from penstock.scheduler.config import EngineConfig, ModelSpec, WorkerConfig
from penstock.scheduler.launch import WorkerProcess, dump_config, load_config, start_worker
from penstock.scheduler.messages import (
    Cancel,
    Embed,
    Hello,
    Message,
    ModelFailed,
    ModelReady,
    RequestOutput,
    StepOutputs,
    Submit,
    WorkerReady,
    decode,
    encode,
)
from penstock.scheduler.sampling_params import SamplingParams

PROMPT = [50, 60, 70, 80, 90]
Connect = Callable[[str], "Client"]


class Client:
    """One API process's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, 60_000)
        self.socket.connect(address)
        self.num_running = 0
        """Of model "m", as the last step told."""
        self.send(Hello())

    def send(self, message: Message) -> None:
        self.socket.send_multipart(encode(message))

    def receive(self) -> Message:
        message = decode(self.socket.recv_multipart())
        if isinstance(message, StepOutputs):
            self.num_running = message.stats["m"].num_running if "m" in message.stats else 0
        return message

    def until_ready(self) -> list[Message]:
        messages = [self.receive()]
        while not isinstance(messages[-1], WorkerReady):
            messages.append(self.receive())
        return messages

    def outputs_until_end(self, request_id: str) -> list[RequestOutput]:
        outputs: list[RequestOutput] = []
        while not outputs or outputs[-1].finish_reason is None:
            message = self.receive()
            assert isinstance(message, StepOutputs)
            outputs += [output for output in message.outputs if output.request_id == request_id]
        return outputs


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients and closes them after the test."""
    clients: list[Client] = []

    def make(address: str) -> Client:
        clients.append(Client(address))
        return clients[-1]

    yield make
    for client in clients:
        client.socket.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def worker(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    config = WorkerConfig(
        address=f"ipc://{tmp_path_factory.mktemp('socket') / 'worker.sock'}",
        engine=EngineConfig(device="cpu", kv_cache_memory=64 << 20, num_threads=1),
        models=(ModelSpec("m", str(folder), "generate", "float32"), ModelSpec("gone", str(folder / "x"), "generate")),
    )
    process = start_worker(config)
    yield process
    process.stop()


def greedy(request_id: str, max_tokens: int = 8) -> Submit:
    params = SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0, ignore_eos=max_tokens > 8)
    return Submit(request_id, "m", PROMPT, params, time.time())


def test_the_configuration_survives_the_command_line(worker: WorkerProcess) -> None:
    assert load_config(dump_config(worker.config)) == worker.config


def test_it_tells_which_models_are_ready_and_which_failed(connect: Connect, worker: WorkerProcess) -> None:
    states = {
        message.name: message for message in connect(worker.config.address).until_ready() if hasattr(message, "name")
    }
    ready, failed = states["m"], states["gone"]
    assert isinstance(ready, ModelReady)
    assert (ready.kind, ready.dtype, ready.max_model_len, ready.vocab_size) == ("generate", "float32", 512, 384)
    assert ready.num_kv_blocks > 0
    assert isinstance(failed, ModelFailed)
    assert failed.message


def test_two_api_processes_get_their_own_tokens(connect: Connect, worker: WorkerProcess, folder: Path) -> None:
    one, two = connect(worker.config.address), connect(worker.config.address)
    for client in (one, two):
        client.until_ready()
    one.send(greedy("one"))
    two.send(greedy("two"))
    expected = Oracle(folder).greedy(PROMPT, 8)
    for client, name in ((one, "one"), (two, "two")):
        outputs = client.outputs_until_end(name)
        assert [token for output in outputs for token in output.token_ids] == expected
        assert outputs[-1].timings is not None


def test_a_refused_job_and_a_broken_frame_hurt_nobody(connect: Connect, worker: WorkerProcess) -> None:
    client = connect(worker.config.address)
    client.until_ready()
    client.socket.send_multipart([b"Submit", b"\xc1"])
    client.socket.send_multipart([b"alone"])
    client.send(Submit("long", "m", PROMPT * 200, SamplingParams(max_tokens=1, seed=0), time.time()))
    (refused,) = client.outputs_until_end("long")
    assert refused.error is not None
    assert (refused.error.code, refused.error.status) == ("context_length_exceeded", 400)
    client.send(greedy("next"))
    assert client.outputs_until_end("next")[-1].error is None


def test_a_cancelled_job_gives_its_blocks_back(connect: Connect, worker: WorkerProcess) -> None:
    client = connect(worker.config.address)
    client.until_ready()
    client.send(greedy("long", max_tokens=400))
    message = client.receive()
    while not (isinstance(message, StepOutputs) and message.outputs):
        message = client.receive()
    assert message.stats["m"].kv_blocks_used > 0
    client.send(Cancel(["long", "unknown"]))
    while not (isinstance(message, StepOutputs) and message.stats["m"].kv_blocks_used == 0):
        message = client.receive()


def test_jobs_of_an_api_process_that_is_gone_are_dropped(connect: Connect, worker: WorkerProcess) -> None:
    leaver, stayer = connect(worker.config.address), connect(worker.config.address)
    for client in (leaver, stayer):
        client.until_ready()
    leaver.send(greedy("orphan", max_tokens=500))
    leaver.receive()
    leaver.socket.close()
    stayer.send(greedy("mine"))
    stayer.outputs_until_end("mine")
    while stayer.num_running > 0:
        stayer.receive()


def test_it_uses_no_processor_time_without_work(connect: Connect, worker: WorkerProcess) -> None:
    client = connect(worker.config.address)
    client.until_ready()
    client.send(greedy("busy"))
    client.outputs_until_end("busy")
    process = psutil.Process(worker.pid)
    before = process.cpu_times()
    time.sleep(1.5)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system <= 0.05


@pytest.mark.parametrize("how", ["SIGTERM", "standard input closes"])
def test_it_ends_by_itself(connect: Connect, tmp_path: Path, how: str) -> None:
    config = WorkerConfig(f"ipc://{tmp_path / 'w.sock'}", EngineConfig(device="cpu", kv_cache_memory=1 << 20), ())
    process = start_worker(config)
    connect(config.address).until_ready()
    if how == "SIGTERM":
        os.kill(process.pid, signal.SIGTERM)
    else:
        assert process.process.stdin is not None
        process.process.stdin.close()
    assert process.process.wait(10) == 0
    process.stop()


def test_embeddings_come_back_as_bytes_in_order(connect: Connect, tmp_path: Path) -> None:
    config = WorkerConfig(
        f"ipc://{tmp_path / 'w.sock'}",
        EngineConfig(device="cpu", num_threads=1, max_num_batched_tokens=16, max_num_seqs=4),
        (ModelSpec("e", str(minilm_folder()), "embed", "float32"),),
    )
    process = start_worker(config)
    try:
        client = connect(config.address)
        client.until_ready()
        inputs = [[101, 2023, 102], [101, 7592, 2088, 999, 102], [101, 2003, 2023, 102]] * 4
        client.send(Embed("all", "e", inputs, time.time()))
        for name, single in (("first", inputs[0]), ("second", inputs[1])):
            client.send(Embed(name, "e", [single], time.time()))
        vectors = {}
        while len(vectors) < 3:
            message = client.receive()
            assert isinstance(message, StepOutputs)
            for output in message.embeddings:
                assert output.error is None
                vectors[output.request_id] = np.frombuffer(output.data, "<f4").reshape(-1, output.dim)
        assert vectors["all"].shape == (12, 384)
        for index in range(12):
            if index % 3 < 2:
                single = vectors["first" if index % 3 == 0 else "second"][0]
                np.testing.assert_allclose(vectors["all"][index], single, atol=1e-5)
    finally:
        process.stop()
