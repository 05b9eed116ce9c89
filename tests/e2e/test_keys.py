"""API keys on real servers: with real clients, in two API processes, and changed while the server runs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import anthropic
import httpx2
import openai
import pytest
from server_process import ServerProcess
from tiny_models import make_tiny, make_tiny_tokenizer

from penstock.serving.keys.key import new_key as key_of
from penstock.serving.keys.key_file import KEY_FILE, KeyFile
from penstock.serving.principal import Limits, Scope

PROMPT = {"model": "tiny", "prompt": "water", "max_tokens": 4, "ignore_eos": True}
NUM_CONNECTIONS = 8
"""New ones; that all go to one of two processes happens once in 128 times, and would hide a fault only."""
SOON = 30.0


class Team:
    """A server with two API processes, which other machines reach, and the command that makes its keys."""

    def __init__(self, server: ServerProcess, home: Path, admin: str) -> None:
        self.server = server
        self.home = home
        self.admin = admin

    def command(self, *arguments: str, key: str = "") -> "subprocess.CompletedProcess[str]":
        return penstock(self.home, *arguments, key=key)

    def statuses(self, key: str) -> set[int]:
        """What new connections get, spread over the processes as the kernel likes."""
        url = f"{self.server.base_url}/v1/models"
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return {httpx2.get(url, headers=headers, timeout=60).status_code for _ in range(NUM_CONNECTIONS)}


def penstock(home: Path, *arguments: str, key: str = "") -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PENSTOCK_HOME": str(home), "PENSTOCK_API_KEY": key}
    command = [sys.executable, "-m", "penstock.serving.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def new_key(home: Path, name: str, scope: Scope = "use") -> str:
    """As `penstock keys add` makes it, without the start of a process."""
    secret, key = key_of(name, frozenset({scope}), 1.0, Limits(), time.time())
    with closing(KeyFile(home / KEY_FILE)) as file:
        file.add(key)
    return secret


def revoke(home: Path, name: str) -> None:
    with closing(KeyFile(home / KEY_FILE)) as file:
        (key,) = (key for key in file.read() if key.name == name)
        file.revoke(key, time.time())


def ask(url: str, body: dict[str, object], key: str = "") -> httpx2.Response:
    """In a connection of its own."""
    return httpx2.post(url, json=body, headers={"authorization": f"Bearer {key}"} if key else {}, timeout=60)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny("llama", folder)
    return make_tiny_tokenizer(folder)


@pytest.fixture(scope="module")
def team(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    home = tmp_path_factory.mktemp("home")
    admin = new_key(home, "root", "admin")
    arguments = ["--host", "0.0.0.0", "--api-processes", "2"]
    with ServerProcess([str(tiny)], home=home, arguments=arguments) as server:
        team = Team(server, home, admin)
        until(lambda: team.statuses(admin) == {200})
        yield team
        assert server.stop() == 0
        assert admin not in server.log and "Traceback" not in server.log


def test_official_clients_bring_their_key(team: Team) -> None:
    url, key = team.server.base_url, new_key(team.home, "clients")
    until(lambda: team.statuses(key) == {200})
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        assert client.completions.create(model="tiny", prompt="water", max_tokens=4).usage
        with pytest.raises(openai.PermissionDeniedError) as forbidden:
            client.get("/../metrics", cast_to=str)
        assert forbidden.value.code == "insufficient_permissions"
    with anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as claude:  # in x-api-key
        assert [model.id for model in claude.models.list()] == ["tiny"]
    with anthropic.Anthropic(base_url=url, auth_token=key, max_retries=0) as claude:
        assert [model.id for model in claude.models.list()] == ["tiny"]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-other", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as wrong:
            client.models.list()
        assert wrong.value.code == "invalid_api_key"
    with (
        anthropic.Anthropic(base_url=url, api_key="sk-other", max_retries=0) as claude,
        pytest.raises(anthropic.AuthenticationError, match="not known here"),
    ):
        claude.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": "hi"}])


def test_keys_come_and_go_while_the_server_runs(team: Team) -> None:
    key = new_key(team.home, "guest")
    until(lambda: team.statuses(key) == {200})
    assert team.statuses("") == {401}
    url = f"{team.server.base_url}/v1/completions"
    headers = {"authorization": f"Bearer {key}"}
    body = {**PROMPT, "max_tokens": 400, "stream": True}
    with httpx2.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line)
        first = next(lines)
        revoke(team.home, "guest")
        until(lambda: team.statuses(key) == {401})
        rest = list(lines)
    assert json.loads(first.removeprefix("data: "))["choices"] and rest[-1] == "data: [DONE]"
    assert "error" not in "".join(rest), "what runs is finished"
    assert "revoked" in ask(url, PROMPT, key).json()["error"]["message"]


def test_what_one_key_stores_is_its_own_in_every_process(team: Team) -> None:
    mine, other = new_key(team.home, "mine"), new_key(team.home, "other")
    until(lambda: team.statuses(mine) == team.statuses(other) == {200})
    made = ask(f"{team.server.base_url}/v1/conversations", {}, mine).json()
    url = f"{team.server.base_url}/v1/conversations/{made['id']}"
    for _ in range(NUM_CONNECTIONS):
        assert httpx2.get(url, headers={"x-api-key": mine}).status_code == 200
        assert httpx2.get(url, headers={"x-api-key": other}).status_code == 404


def test_models_are_the_business_of_admins_from_every_process(team: Team) -> None:
    user = new_key(team.home, "user")
    until(lambda: team.statuses(user) == {200})
    url = f"{team.server.base_url}/api/v1/models/load"
    for _ in range(NUM_CONNECTIONS):
        assert ask(url, {"model": "tiny"}).status_code == 401
        assert ask(url, {"model": "tiny"}, user).status_code == 403
        assert ask(url, {"model": "tiny"}, team.admin).status_code == 200


def test_commands_bring_a_key(team: Team) -> None:
    port = team.server.base_url.rpartition(":")[2]
    refused = team.command("ps", "--port", port)
    assert refused.returncode == 1 and "PENSTOCK_API_KEY" in refused.stderr
    shown = team.command("ps", "--port", port, "--json", key=team.admin)
    assert [entry["id"] for entry in json.loads(shown.stdout)] == ["tiny"], shown.stderr
    assert team.command("status", "--port", port, "--api-key", team.admin).returncode == 0


def test_without_keys_other_machines_need_no_auth(tiny: Path, tmp_path: Path) -> None:
    refused = penstock(tmp_path, "serve", str(tiny), "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2
    assert "penstock keys add NAME" in refused.stderr and "--no-auth" in refused.stderr
    with ServerProcess([str(tiny)], home=tmp_path, arguments=["--no-auth"]) as server:
        url = f"{server.base_url}/v1/completions"
        # as a proxy on the same machine asks
        named = httpx2.post(url, json=PROMPT, headers={"host": "models.example"}, timeout=60)
        assert named.status_code == 200
        key = new_key(tmp_path, "first")
        until(lambda: ask(url, PROMPT).status_code == 401)
        assert ask(url, PROMPT, key).status_code == 200
        revoke(tmp_path, "first")
        until(lambda: ask(url, PROMPT, key).status_code == 401)
        assert ask(url, PROMPT).status_code == 401, "revoking the last key opens nothing"


def test_a_page_of_the_web_reaches_no_open_server(server: ServerProcess) -> None:
    for header in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        answer = httpx2.get(f"{server.base_url}/v1/models", headers=header)
        assert answer.status_code == 403 and "penstock keys add" in answer.json()["error"]["message"]
    local = httpx2.get(f"{server.base_url}/v1/models", headers={"origin": "http://localhost:3000"})
    assert local.status_code == 200
