"""The commands: what they ask a server, what they print, and how they fail."""

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_engine import tiny_tokenizer

from penstock.serving import cli
from penstock.serving.commands import log, words
from penstock.serving.server_log import log_file
from penstock.serving.settings import Settings

MODELS = {
    "data": [
        {"id": "a", "root": "a", "type": "llm", "state": "loaded", "architecture": "llama", "quantization": "BF16"}
        | {"num_parameters": 134_515_008, "max_model_len": 8192, "size_bytes": 269_000_000}
        | {"memory_bytes": 300_000_000, "requests_in_flight": 2}
        | {"ttl": None, "ttl_left": None},
        {"id": "b", "root": "b", "type": "embeddings", "state": "loaded", "architecture": "bert", "quantization": "F32"}
        | {"num_parameters": 22_000_000, "max_model_len": 256, "size_bytes": 90_000_000}
        | {"memory_bytes": 90_000_000, "requests_in_flight": 0}
        | {"ttl": 3600, "ttl_left": 3599.5},
        {"id": "c", "root": "c", "type": "llm", "state": "not-loaded", "architecture": "qwen3", "quantization": "F16"}
        | {"num_parameters": None, "max_model_len": None, "size_bytes": 1_500_000_000},
        {"id": "gpt-4o", "root": "a", "type": "llm", "state": "loaded"},
    ]
}
Answer = tuple[int, str] | dict[str, Any]


class FakeServer(ThreadingHTTPServer):
    """Answers with what the test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer | Callable[[Any], Answer]] = {"/v1/models": MODELS}
        self.asked: list[tuple[str, Any]] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def answer(self, body: Any) -> None:
        self.server.asked.append((self.path, body))
        answer = self.server.answers.get(self.path, (404, json.dumps({"error": {"message": "no such URL"}})))
        if callable(answer):
            answer = answer(body)
        status, text = answer if isinstance(answer, tuple) else (200, json.dumps(answer))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"PENSTOCK_{name.upper()}", raising=False)
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    monkeypatch.setenv("PENSTOCK_PORT", "1")  # where nothing listens


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with FakeServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("PENSTOCK_PORT", str(server.server_address[1]))
        yield server
        server.shutdown()


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


@pytest.mark.parametrize(
    "command", [["ps"], ["status"], ["load", "a"], ["unload", "a"], ["unload", "--all"], ["chat", "a", "-p", "hi"]]
)
def test_without_a_server_the_commands_say_how_to_start_one(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    assert out == "" and "no server answers at http://127.0.0.1:1" in err and "penstock serve" in err
    assert err.startswith(f"penstock {command[0]}: error: ") and "Traceback" not in err


@pytest.mark.parametrize("command", ["ls", "ps", "load", "unload", "rm", "pull", "chat", "status", "log"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"usage: penstock {command}" in capsys.readouterr().out
    name = ["x"] if command in ("load", "rm", "pull") else []
    assert cli.main([command, *name, "--bogus"]) == 2
    assert "--bogus" in capsys.readouterr().err
    assert cli.main([command, *name, "--port", "x"]) == 2
    assert "port is 'x'" in capsys.readouterr().err


def test_ps_shows_what_is_in_memory_and_for_how_long(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ps"]) == 0
    heading, *lines = rows(capsys.readouterr().out)
    assert heading == ["MODEL", "STATE", "PARAMETERS", "MEMORY", "CONTEXT", "REQUESTS", "UNLOADS"]
    assert lines == [
        ["a", "loaded", "135 M", "300 MB", "8,192", "2", "by hand only"],
        ["b", "loaded", "22 M", "90 MB", "256", "0", "in 59 min"],
    ]
    assert cli.main(["ps", "--json"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == ["a", "b"]


def test_ls_joins_the_disk_and_a_running_server(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(tmp_path / "models" / "d")
    assert cli.main(["ls"]) == 0
    heading, *lines = rows(capsys.readouterr().out)
    assert heading[-1] == "STATE" and [line[0] for line in lines] == ["a", "b", "c", "d"]
    assert lines[2] == ["c", "chat", "qwen3", "–", "1.5 GB", "F16", "0", "not-loaded"]
    assert lines[3] == ["d", "chat", "llama", "–", "1 kB", "–", "0", "not-loaded"]


def test_ls_needs_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ls"]) == 0
    assert "no models in" in capsys.readouterr().out
    make_model(tmp_path / "models" / "d")
    assert cli.main(["ls", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["id"], row["size_bytes"], row["folder"]) == ("d", 1000, str(tmp_path / "models" / "d"))


def test_load_and_unload_use_the_native_routes(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/api/v1/models/load"] = {"instance_id": "a", "load_time_seconds": 1.25, "status": "loaded"}
    server.answers["/api/v1/models/unload"] = lambda body: (
        (409, json.dumps({"error": {"message": "a is busy"}})) if body["instance_id"] == "a" else body
    )
    assert cli.main(["load", "a", "--ttl", "60"]) == 0
    assert capsys.readouterr().out == "a is loaded (in 1.2 s)\n"
    assert server.asked[-1] == ("/api/v1/models/load", {"model": "a", "ttl": 60})
    assert cli.main(["unload", "b"]) == 0
    assert capsys.readouterr().out == "b is unloaded\n"
    assert cli.main(["unload", "a"]) == 1
    assert capsys.readouterr().err == "penstock unload: error: a is busy\n"
    assert cli.main(["unload", "--all"]) == 1  # one of the two is kept
    assert capsys.readouterr() == ("b is unloaded\n", "penstock unload: a is busy\n")
    assert cli.main(["unload"]) == 1
    assert "name one model, or --all" in capsys.readouterr().err


def test_status_sums_up(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/health"] = {"status": "ok", "models": ["a", "b"], "failed": {"d": "no such architecture"}}
    assert cli.main(["status"]) == 0
    shown = capsys.readouterr().out
    for part in ("/v1: ok", "a, b (of 3 models)", "in flight: 2", "d cannot be served: no such architecture"):
        assert part in shown
    server.answers["/health"] = (503, json.dumps({"status": "dead", "reason": "was killed"}))
    assert cli.main(["status"]) == 1
    assert "was killed" in capsys.readouterr().err


def test_another_program_at_the_port_is_no_traceback(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/v1/models"] = (200, "<html>")
    assert cli.main(["ps"]) == 1
    assert "is no Penstock" in capsys.readouterr().err
    server.answers["/v1/models"] = (500, "<html>")
    assert cli.main(["ps"]) == 1
    assert "answers 500" in capsys.readouterr().err


def test_rm_deletes_what_is_in_the_home_and_unused(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "c-0123456789ab", "c-ba9876543210"):
        make_model(tmp_path / "models" / name)
    snapshot = make_model(tmp_path / "hub" / "models--org--d" / "snapshots" / "1")
    (tmp_path / "hub" / "complete").mkdir()
    (tmp_path / "hub" / "complete" / "org--d").write_text(str(snapshot))
    assert cli.main(["rm", "a", "--yes"]) == 1
    assert "penstock unload a" in capsys.readouterr().err
    assert cli.main(["rm", "../models/a", "--yes"]) == 1
    assert "there is no model" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert cli.main(["rm", "c"]) == 1
    assert "say --yes" in capsys.readouterr().err
    assert cli.main(["rm", "c", "--yes"]) == 0 and cli.main(["rm", "org/d", "--yes"]) == 0
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["complete"]
    assert not list((tmp_path / "hub" / "complete").iterdir())


def test_rm_of_a_link_leaves_alone_what_it_leads_to(server: FakeServer, tmp_path: Path) -> None:
    elsewhere = make_model(tmp_path / "elsewhere")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "linked").symlink_to(elsewhere)
    assert cli.main(["rm", "linked", "--yes"]) == 0
    assert not list((tmp_path / "models").iterdir())
    assert (elsewhere / "config.json").is_file()


def stream(*pieces: dict[str, Any]) -> tuple[int, str]:
    chunks = [json.dumps({"choices": [{"index": 0, "delta": piece}]}) for piece in pieces]
    return 200, "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"])


def test_chat_answers_one_prompt(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["/v1/chat/completions"] = stream({"role": "assistant"}, {"content": "Rhi"}, {"content": "ne"})
    assert cli.main(["chat", "-p", "a river", "--system", "be brief"]) == 0
    assert capsys.readouterr().out == "Rhine\n"
    path, body = server.asked[-1]
    assert (path, body["model"], body["stream"]) == ("/v1/chat/completions", "a", True)
    assert [message["content"] for message in body["messages"]] == ["be brief", "a river"]
    assert body["temperature"] == 0.7 and "max_tokens" not in body
    assert cli.main(["chat", "c", "-p", "a river", "--json", "--temperature", "0", "--max-tokens", "9"]) == 0
    assert (server.asked[-1][1]["temperature"], server.asked[-1][1]["max_tokens"]) == (0, 9)
    assert json.loads(capsys.readouterr().out) == {"model": "c", "content": "Rhine"}


def test_a_chat_remembers_until_it_is_cleared(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/v1/chat/completions"] = lambda body: stream({"content": f"<{len(body['messages'])}>"})
    lines = iter(["one", "", "two", "/help", "/clear", "three", "/exit", "never"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert cli.main(["chat", "a"]) == 0
    shown = capsys.readouterr().out
    assert [shown.count(f"<{number}>") for number in (1, 2, 3)] == [2, 0, 1] and shown.count("/clear forgets") == 2
    assert next(lines) == "never"


def test_an_error_in_a_chat_does_not_end_it(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/v1/chat/completions"] = (200, 'data: {"error": {"message": "the worker is gone"}}\n\n')
    lines = iter(["one"])

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert cli.main(["chat", "a"]) == 0
    assert "error: the worker is gone" in capsys.readouterr().err
    assert cli.main(["chat", "a", "-p", "x"]) == 1


def test_log_shows_the_last_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["log"]) == 1
    assert "no log of a server at port 1" in capsys.readouterr().err
    file = log_file(tmp_path, 1)
    file.parent.mkdir()
    file.write_text("".join(f"line {number}\n" for number in range(100)))
    assert cli.main(["log", "-n", "2"]) == 0
    assert capsys.readouterr().out == "line 98\nline 99\n"


def test_log_follows_a_file_that_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.log"
    file.write_text("old\n")
    steps: list[Callable[[], object]] = [
        lambda: file.write_text("old\nnew\n"),
        lambda: (file.rename(tmp_path / "x.log.1"), file.write_text("next\n")),
    ]
    monkeypatch.setattr(log.time, "sleep", lambda seconds: steps.pop(0)())
    lines = log.follow(file, 4)
    assert [next(lines), next(lines)] == ["new\n", "next\n"]


def test_pull_fetches_what_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_model(tmp_path / "models" / "smollm2-135m-instruct")
    assert cli.main(["pull", "smollm2-135m-instruct"]) == 0
    assert capsys.readouterr().out == f"smollm2-135m-instruct is here: 1 kB in {folder}\n"
    assert cli.main(["pull", "smollm2-135m-instruct", "--json"]) == 0
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"status": "downloading", "total_size_bytes": None}
    assert last == {"status": "completed", "model": "smollm2-135m-instruct", "folder": str(folder)}
    assert cli.main(["pull", str(folder)]) == 1
    assert "is a folder on this machine already" in capsys.readouterr().err
    assert cli.main(["pull", "nothing"]) == 1
    assert "unknown model 'nothing'" in capsys.readouterr().err


def test_sizes_are_told_in_three_digits() -> None:
    assert [words.size(number) for number in (0, 999, 1234, 99_600_000, 5.2e9)] == [
        "–",
        "999 B",
        "1.23 kB",
        "100 MB",
        "5.2 GB",
    ]
    assert [words.count(number) for number in (None, 7e9, 134_515_008)] == ["–", "7 B", "135 M"]
    assert [words.duration(seconds) for seconds in (59.9, 119, 120, 7199, 7200)] == [
        "59 s",
        "119 s",
        "2 min",
        "119 min",
        "2 h",
    ]
