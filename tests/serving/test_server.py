"""The server as a process, with a stub for the device worker: start, table, signals, worker death, exit statuses."""

import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
from server_process import ServerProcess
from stub_worker import ENDLESS_PROMPT_TOKENS, SLOW_PROMPT_TOKENS
from tokenizers import Tokenizer, models, pre_tokenizers

STUB = Path(__file__).with_name("stub_worker.py")

# The real command, whose worker is the stub: everything else runs as it is shipped.
COMMAND = f"""
import subprocess, sys
from penstock.scheduler.launch import WorkerProcess, dump_config
from penstock.serving import cli, supervisor

def start_worker(config, stderr):
    command = [sys.executable, {str(STUB)!r}, dump_config(config)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=stderr, start_new_session=True)
    return WorkerProcess(process, config)

supervisor.start_worker = start_worker
supervisor._PAUSES = (0.0, 0.05)
sys.exit(cli.main())
"""


class StubbedServer(ServerProcess):
    """A server that has the stub as its worker."""

    def __init__(self, model_folders: list[Path], scratch: Path, *arguments: str, timeout: float = 30.0) -> None:
        super().__init__(
            [str(folder) for folder in model_folders],
            home=scratch,
            arguments=list(arguments),
            environment={"TMPDIR": str(scratch)},
            timeout=timeout,
        )
        self._command[1:3] = ["-c", COMMAND]

    @property
    def worker_pid(self) -> int:
        return next(child.pid for child in psutil.Process(self.pid).children() if str(STUB) in child.cmdline())


def make_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").touch()
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate("abcdefg?")}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """The server's home and its place for temporary files, empty but for its log and a socket folder while it runs."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    assert {path.name for path in folder.iterdir()} <= {"logs"}, "the server left something behind"


def complete(server: ServerProcess, model: str, prompt: str = "a", **options: object) -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": 2, **options}
    return httpx.post(f"{server.base_url}/v1/completions", json=body, timeout=20)


def test_a_server_starts_answers_and_ends_on_sigterm(tmp_path: Path, scratch: Path) -> None:
    model = make_model(tmp_path / "tiny")
    with StubbedServer([model], scratch, "--block-size", "32", "--max-num-seqs", "9") as server:
        answer = complete(server, "tiny")
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"].split() == ["b", "c"]
        assert server.stop(signal.SIGTERM) == 0
        log = server.log
    for shown in ("tiny", "cpu", "float32", "1.5 B", "64", "100 × 32 tokens", "9.0"):
        assert shown in log
    assert f"curl {server.base_url}/v1/chat/completions" in log
    assert "Traceback" not in log


def test_ctrl_c_ends_it_too_and_the_worker_with_it(tmp_path: Path, scratch: Path) -> None:
    with StubbedServer([make_model(tmp_path / "tiny")], scratch) as server:
        worker = psutil.Process(server.worker_pid)
        assert server.stop(signal.SIGINT) == 0
        assert not worker.is_running()
        assert "Traceback" not in server.log


def begin_streams(streams: ExitStack, server: ServerProcess, count: int, num_words: int) -> list[Iterator[str]]:
    """The lines of streams that have begun and go on for a second, or without end if the prompt is very long."""
    body = {"model": "tiny", "prompt": "a " * num_words, "max_tokens": 2, "stream": True}
    url = f"{server.base_url}/v1/completions"
    answers = [streams.enter_context(httpx.stream("POST", url, json=body, timeout=30)) for _ in range(count)]
    lines = [answer.iter_lines() for answer in answers]
    assert all(next(each).startswith("data: ") for each in lines)
    return lines


def begin_to_drain(server: ServerProcess) -> httpx.Response:
    """Send SIGTERM; the first refusal of work after that. It is work that needs no worker."""
    server.process.send_signal(signal.SIGTERM)
    body = {"model": "tiny", "prompt": "a"}
    while (answer := httpx.post(f"{server.base_url}/tokenize", json=body, timeout=20)).status_code == 200:
        pass
    return answer


@pytest.mark.parametrize("arguments", [(), ("--api-processes", "2")])
def test_a_server_that_drains_finishes_what_runs_and_refuses_what_is_new(
    tmp_path: Path, scratch: Path, arguments: tuple[str, ...]
) -> None:
    with StubbedServer([make_model(tmp_path / "tiny")], scratch, *arguments) as server, ExitStack() as streams:
        lines = begin_streams(streams, server, 3, SLOW_PROMPT_TOKENS)
        refused = begin_to_drain(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_draining")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers["connection"] == "close" and refused.headers["x-request-id"]
        message = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}
        refused = httpx.post(f"{server.base_url}/v1/messages", json=message)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "overloaded_error")
        for path in ("/health", "/metrics", "/v1/models"):
            assert httpx.get(server.base_url + path).status_code == 200
        assert [[line for line in each if line][-1] for each in lines] == ["data: [DONE]"] * 3
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.log and "ERROR" not in server.log
        assert re.search(r"draining: \d requests? in flight, at most 30 s; another Ctrl-C", server.log)
        assert server.log.rstrip().endswith("stopped")


@pytest.mark.parametrize("arguments", [(), ("--api-processes", "2")])
def test_an_idle_server_ends_although_clients_keep_their_connections(
    tmp_path: Path, scratch: Path, arguments: tuple[str, ...]
) -> None:
    arguments = ("--drain-timeout", "3600", *arguments)
    with StubbedServer([make_model(tmp_path / "tiny")], scratch, *arguments) as server, ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client()) for _ in range(4)]
        assert [client.get(f"{server.base_url}/health").status_code for client in clients] == [200] * 4
        assert server.stop() == 0
    assert "draining" not in server.log


class Hammer(threading.Thread):
    """A client that asks again and again, in new connections and in one that it keeps, until the server is gone."""

    def __init__(self, url: str, *, keeps: bool) -> None:
        super().__init__()
        self.url = url
        self.keeps = keeps
        self.statuses: list[int] = []
        self.end: Exception | None = None

    def run(self) -> None:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 2}
        with httpx.Client(timeout=20) as kept:
            while self.end is None:
                try:
                    answer = (kept if self.keeps else httpx).post(self.url, json=body)
                    answer.json()
                    self.statuses.append(answer.status_code)
                except httpx.HTTPError as error:
                    self.end = error


@pytest.mark.parametrize("arguments", [(), ("--api-processes", "2")])
def test_nobody_is_cut_off_by_a_server_that_drains(tmp_path: Path, scratch: Path, arguments: tuple[str, ...]) -> None:
    with StubbedServer([make_model(tmp_path / "tiny")], scratch, *arguments) as server, ExitStack() as streams:
        lines = begin_streams(streams, server, 1, SLOW_PROMPT_TOKENS)
        hammers = [Hammer(f"{server.base_url}/v1/completions", keeps=index % 2 == 0) for index in range(6)]
        for hammer in hammers:
            hammer.start()
        begin_to_drain(server)
        for hammer in hammers:
            hammer.join(30)
        assert [[line for line in each if line][-1] for each in lines] == ["data: [DONE]"]
        assert server.process.wait(30) == 0
    for hammer in hammers:
        said = f"after the answers {hammer.statuses[-3:]}: {hammer.end!r}"
        assert isinstance(hammer.end, httpx.ConnectError), said
        assert set(hammer.statuses) <= {200, 503}


def test_the_other_api_processes_end_with_a_server_that_is_killed(tmp_path: Path, scratch: Path) -> None:
    with StubbedServer([make_model(tmp_path / "tiny")], scratch, "--api-processes", "2") as server:
        others = psutil.Process(server.pid).children()
        assert len(others) == 2
        server.stop(signal.SIGKILL)
        gone, alive = psutil.wait_procs(others, timeout=10)
        assert not alive
    for left in scratch.glob("penstock-*"):  # nobody was there to remove it
        shutil.rmtree(left)


@pytest.mark.parametrize("arguments", [(), ("--api-processes", "2")])
def test_requests_that_do_not_finish_in_time_hear_of_it(
    tmp_path: Path, scratch: Path, arguments: tuple[str, ...]
) -> None:
    arguments = ("--drain-timeout", "0.5", "--alias", "gpt-4o=gone", "--default-model", "gone-too", *arguments)
    with StubbedServer([make_model(tmp_path / "tiny")], scratch, *arguments) as server, ExitStack() as streams:
        all_lines = begin_streams(streams, server, 4, ENDLESS_PROMPT_TOKENS)
        server.process.send_signal(signal.SIGTERM)
        for lines in all_lines:
            last = [line for line in lines if line][-1]
            assert '"code":"engine_dead"' in last and "shutting down" in last
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.log and "ERROR" not in server.log
        for name in ("the alias gpt-4o stands for gone,", "the default model of kind generate stands for gone-too,"):
            assert f"{name} but there is no such model; there are: tiny" in server.log


@pytest.mark.parametrize("arguments", [(), ("--api-processes", "2")])
def test_streams_go_on_when_the_worker_dies(tmp_path: Path, scratch: Path, arguments: tuple[str, ...]) -> None:
    with StubbedServer([make_model(tmp_path / "tiny")], scratch, *arguments) as server, ExitStack() as streams:
        lines = begin_streams(streams, server, 4, SLOW_PROMPT_TOKENS)
        os.kill(server.worker_pid, signal.SIGKILL)
        for each in lines:
            second, end = (line for line in each if line)
            assert json.loads(second.removeprefix("data: "))["choices"][0]["text"].strip() == "c"
            assert end == "data: [DONE]"
        assert complete(server, "tiny").status_code == 200
        assert "was killed by signal 9" in server.log
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_a_worker_that_never_comes_up_again_is_an_answer_too(tmp_path: Path, scratch: Path) -> None:
    with StubbedServer([make_model(tmp_path / "once")], scratch) as server:
        os.kill(server.worker_pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while (answer := httpx.get(f"{server.base_url}/health")).status_code == 200:
            assert time.monotonic() < deadline, "nobody gave up"
        assert answer.json()["status"] == "dead"
        answer = complete(server, "once")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")
        assert answer.headers["retry-after"]
        assert "5 workers in a row did not get ready" in server.log
        assert server.stop() == 0


@pytest.mark.parametrize("arguments", [(), ("--api-processes", "2")])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_server_at_once_and_leaves_nothing(
    tmp_path: Path, scratch: Path, signum: signal.Signals, arguments: tuple[str, ...]
) -> None:
    arguments = ("--drain-timeout", "3600", *arguments)
    with StubbedServer([make_model(tmp_path / "tiny")], scratch, *arguments) as server, ExitStack() as streams:
        _lines = begin_streams(streams, server, 4, ENDLESS_PROMPT_TOKENS)
        children = psutil.Process(server.pid).children(recursive=True)
        begin_to_drain(server)
        assert server.stop(signum) == 128 + signum
        assert not psutil.wait_procs(children, timeout=10)[1]
        assert "Traceback" not in server.log


def test_a_server_without_its_supervisor_ends_and_says_so(tmp_path: Path, scratch: Path) -> None:
    server = StubbedServer([make_model(tmp_path / "tiny")], scratch)
    fault = "supervisor.Supervisor._note_death = lambda *arguments, **named: 1 / 0"
    server._command[2] = COMMAND.replace("sys.exit", f"{fault}\nsys.exit")
    with server:
        os.kill(server.worker_pid, signal.SIGKILL)
        assert server.process.wait(30) == 1
        assert "ZeroDivisionError" in server.log


def test_requests_finish_although_the_worker_dies_while_the_server_drains(tmp_path: Path, scratch: Path) -> None:
    with StubbedServer([make_model(tmp_path / "tiny")], scratch) as server, ExitStack() as streams:
        (lines,) = begin_streams(streams, server, 1, ENDLESS_PROMPT_TOKENS)
        begin_to_drain(server)
        os.kill(server.worker_pid, signal.SIGKILL)
        assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.process.wait(30) == 0


def test_requests_for_a_loading_model_wait_for_it(tmp_path: Path, scratch: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = StubbedServer([make_model(tmp_path / "slow")], scratch, "--port", str(port)).spawn()
    server.base_url = f"http://127.0.0.1:{port}"
    answer = None
    while answer is None:
        try:
            answer = complete(server, "slow")
        except httpx.ConnectError:
            assert server.process.poll() is None, server.log
    assert server.stop() == 0
    assert answer.status_code == 200


def test_a_model_counts_as_loading_before_the_worker_says_so(tmp_path: Path, scratch: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = StubbedServer([make_model(tmp_path / "late")], scratch, "--port", str(port)).spawn()
    states: list[str] = []
    while "loaded" not in states:
        try:
            (listed,) = httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=20).json()["data"]
            states.append(listed["state"])
        except httpx.ConnectError:
            assert server.process.poll() is None, server.log
    assert server.stop() == 0
    assert set(states) == {"loading", "loaded"}


def test_a_model_that_fails_leaves_the_others(tmp_path: Path, scratch: Path) -> None:
    with StubbedServer([make_model(tmp_path / "fails"), make_model(tmp_path / "tiny")], scratch) as server:
        assert complete(server, "tiny").status_code == 200
        assert "fails is not served: no such architecture" in server.log
        answer = complete(server, "fails")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_model_without_a_usable_tokenizer_leaves_the_others(tmp_path: Path, scratch: Path) -> None:
    dumb = make_model(tmp_path / "dumb")
    (dumb / "tokenizer.json").write_text("{")
    with StubbedServer([dumb, make_model(tmp_path / "tiny")], scratch) as server:
        assert complete(server, "tiny").status_code == 200
        assert "dumb is not served: the text files of dumb" in server.log
        answer = complete(server, "dumb")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert "could not be loaded: the text files of dumb" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fails", "fails cannot be served: no such architecture"),
        ("crashes", "the device worker .* ended with status 7"),
    ],
)
def test_without_any_model_it_ends_with_status_one(tmp_path: Path, scratch: Path, name: str, words: str) -> None:
    server = StubbedServer([make_model(tmp_path / name)], scratch).spawn()
    assert server.process.wait(30) == 1
    assert re.search(words, server.log)
    assert "Traceback" not in server.log


def test_a_taken_port_is_an_error_before_anything_is_loaded(tmp_path: Path, scratch: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = StubbedServer([tmp_path / "no-such-model"], scratch, "--port", str(port)).spawn()
        assert server.process.wait(30) == 1
    assert server.log == (
        f"penstock serve: error: cannot listen on 127.0.0.1 port {port}: address already in use; "
        "choose another --port or --host\n"
    )


def test_an_unknown_model_is_one_line(scratch: Path) -> None:
    server = StubbedServer([Path("no-such-model")], scratch).spawn()
    assert server.process.wait(30) == 1
    assert server.log.startswith("penstock serve: error: unknown model 'no-such-model'")
    assert server.log.count("\n") == 1


def test_the_worker_outlives_no_killed_server(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with StubbedServer([make_model(tmp_path / "tiny")], scratch) as server:
        worker = psutil.Process(server.worker_pid)
        server.stop(signal.SIGKILL)
        assert psutil.wait_procs([worker], timeout=10)[0] == [worker]


def test_a_long_temporary_folder_does_not_break_the_socket(tmp_path: Path) -> None:
    scratch = tmp_path / ("long" * 30)
    scratch.mkdir()
    with StubbedServer([make_model(tmp_path / "tiny")], scratch) as server:
        assert complete(server, "tiny").status_code == 200


def test_a_served_model_name_replaces_the_folders(tmp_path: Path, scratch: Path) -> None:
    with StubbedServer([make_model(tmp_path / "tiny")], scratch, "--served-model-name", "gpt-4o") as server:
        assert [m["id"] for m in httpx.get(f"{server.base_url}/v1/models").json()["data"]] == ["gpt-4o"]


def test_an_idle_server_uses_no_processor_time(tmp_path: Path, scratch: Path) -> None:
    with StubbedServer([make_model(tmp_path / "tiny")], scratch) as server:
        process = psutil.Process(server.pid)
        time.sleep(0.5)  # what starting left to do
        switches = process.num_ctx_switches().voluntary
        time.sleep(2)
        # One wake-up a second renews the Date header; the rest is slack. Polling would show tens.
        assert process.num_ctx_switches().voluntary - switches < 20


def test_the_running_front_has_no_torch(tmp_path: Path, scratch: Path) -> None:
    with StubbedServer([make_model(tmp_path / "tiny")], scratch) as server:
        assert complete(server, "tiny").status_code == 200
        libraries = {Path(entry.path).name for entry in psutil.Process(server.pid).memory_maps()}
    assert libraries and not [name for name in libraries if name.startswith("libtorch")]
