"""The device worker as a real process: its messages, its ends, and jobs of several API processes at once."""

import json
import os
import re
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
    Load,
    Message,
    ModelFailed,
    ModelLoading,
    ModelReady,
    ModelUnloaded,
    RequestOutput,
    StepOutputs,
    Submit,
    Unload,
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

    def state_of(self, model: str) -> ModelReady | ModelFailed | ModelUnloaded:
        """The model's next state that is not on the way to another."""
        while True:
            message = self.receive()
            if isinstance(message, ModelReady | ModelFailed | ModelUnloaded) and message.name == model:
                return message

    def outputs_until_end(self, request_id: str) -> list[RequestOutput]:
        outputs: list[RequestOutput] = []
        while not outputs or outputs[-1].finish_reason is None:
            message = self.receive()
            if not isinstance(message, StepOutputs):
                continue
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
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("qwen3", tmp_path_factory.mktemp("qwen3"), seed=1)


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


def greedy(request_id: str, max_tokens: int = 8, model: str = "m") -> Submit:
    params = SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0, ignore_eos=max_tokens > 8)
    return Submit(request_id, model, PROMPT, params, time.time())


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


def test_jobs_of_api_processes_that_are_gone_are_dropped(connect: Connect, worker: WorkerProcess) -> None:
    *leavers, stayer = (connect(worker.config.address) for _ in range(3))
    for client in (*leavers, stayer):
        client.until_ready()
    for number, leaver in enumerate(leavers):
        leaver.send(greedy(f"orphan {number}", max_tokens=500))
        leaver.receive()
    for leaver in leavers:
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


def test_a_model_loads_beside_a_stream_which_goes_on_token_by_token(
    connect: Connect, worker: WorkerProcess, folder: Path, other: Path
) -> None:
    client = connect(worker.config.address)
    client.until_ready()
    client.send(greedy("stream", max_tokens=400))
    client.send(Load(ModelSpec("other", str(other), "generate", "float32")))
    client.send(Load(ModelSpec("other", str(other), "generate", "float32")))  # on its way already
    tokens: list[int] = []
    states: list[Message] = []
    while not (states and isinstance(states[-1], ModelReady)):
        message = client.receive()
        if isinstance(message, StepOutputs):
            tokens += [token for output in message.outputs for token in output.token_ids]
        else:
            states.append(message)
    assert all(isinstance(state, ModelLoading) for state in states[:-1])
    assert {state.stage for state in states[:-1] if isinstance(state, ModelLoading)} >= {"waiting", "reading weights"}
    client.send(greedy("new", model="other"))
    new = client.outputs_until_end("new")
    assert [token for output in new for token in output.token_ids] == Oracle(other).greedy(PROMPT, 8)
    client.send(Cancel(["stream"]))
    assert len(tokens) > 1
    expected = Oracle(folder).greedy(PROMPT, 400)  # ends at an end token, which the stream ignores
    assert tokens[: len(expected)] == expected[: len(tokens)]
    client.send(Load(ModelSpec("other", str(other), "generate", "float32")))
    assert isinstance(client.state_of("other"), ModelReady)  # at once: it is resident
    client.send(Unload("other"))
    assert client.state_of("other") == ModelUnloaded("other")


def test_a_model_with_jobs_stays_and_one_without_goes_and_comes_back(
    connect: Connect, worker: WorkerProcess, other: Path
) -> None:
    client = connect(worker.config.address)
    client.until_ready()
    spec = ModelSpec("guest", str(other), "generate", "float32")
    for _ in range(2):
        client.send(Load(spec))
        assert isinstance(client.state_of("guest"), ModelReady)
        client.send(greedy("guest-job", max_tokens=300, model="guest"))
        client.send(Unload("guest"))
        assert isinstance(client.state_of("guest"), ModelReady)
        client.send(Cancel(["guest-job"]))
        client.send(Unload("guest"))
        assert client.state_of("guest") == ModelUnloaded("guest")
    client.send(greedy("late", model="guest"))
    (late,) = client.outputs_until_end("late")
    assert late.error is not None
    assert (late.error.code, late.error.status) == ("model_not_found", 404)
    client.send(Unload("guest"))  # is gone already
    assert client.state_of("guest") == ModelUnloaded("guest")


def test_a_model_is_forgotten_on_its_way_and_can_be_asked_for_again(
    connect: Connect, worker: WorkerProcess, other: Path
) -> None:
    client = connect(worker.config.address)
    client.until_ready()
    spec = ModelSpec("whim", str(other), "generate", "float32")
    client.send(Load(ModelSpec("first", str(other), "generate", "float32")))
    client.send(Load(spec))
    client.send(Unload("whim"))  # waits for the first
    client.send(Unload("first"))  # is being loaded
    assert client.state_of("whim") == ModelUnloaded("whim")
    assert client.state_of("first") == ModelUnloaded("first")
    client.send(Load(spec))
    assert isinstance(client.state_of("whim"), ModelReady)
    client.send(Unload("whim"))
    assert client.state_of("whim") == ModelUnloaded("whim")


def test_a_model_larger_than_the_machine_is_refused_before_it_is_read(
    connect: Connect, worker: WorkerProcess, tmp_path: Path
) -> None:
    client = connect(worker.config.address)
    client.until_ready()
    shape = [1 << 20, 1 << 20]
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 << 40]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    client.send(Load(ModelSpec("huge", str(tmp_path), "generate", "float32")))
    state = client.state_of("huge")
    assert isinstance(state, ModelFailed)
    assert re.search("huge needs 4505.6 GiB, but the device has", state.message)
    client.send(greedy("still-here"))
    assert client.outputs_until_end("still-here")[-1].error is None
