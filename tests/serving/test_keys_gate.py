"""The gate: every route needs a key once there are keys, each with its scope, and what a job carries of who asked."""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from fake_engine import CHAT, EMBED, Front, open_front
from fastapi import APIRouter, FastAPI

from penstock.serving.keys.doorkeeper import Doorkeeper
from penstock.serving.keys.key import new_key
from penstock.serving.keys.key_file import KeyFile
from penstock.serving.keys.ring import KeyRing
from penstock.serving.principal import Limits, Principal, Scope
from penstock.serving.routes.operation import declared

MESSAGES = [{"role": "user", "content": "hi"}]
SCOPES: tuple[Scope, ...] = ("embeddings", "use", "admin")
"""Each allows what those before it do."""


class Keys:
    """A key of each scope, one that was revoked, and the doorkeeper that knows them."""

    def __init__(self, path: Path) -> None:
        self.file = KeyFile(path)
        self.secrets = {name: self._add(name, name) for name in SCOPES}
        self.revoked = self._add("former", "admin")
        self.file.revoke(self.file.read()[-1], 2.0)
        self.ring = KeyRing(self.file, no_auth=False, since=0.0)
        self.identify = Doorkeeper(self.ring, refuses_pages=True).identify

    def _add(self, name: str, scope: Scope) -> str:
        secret, key = new_key(name, frozenset({scope}), 3.0, Limits(max_in_flight=7), 1.0)
        self.file.add(key)
        return secret


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    keys = Keys(tmp_path / "keys.sqlite3")
    with closing(keys.ring):
        yield keys


def routes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Method, path and need of every route, with something in the place of its parameters."""
    routers: list[APIRouter] = []
    with monkeypatch.context() as patched:
        patched.setattr(FastAPI, "include_router", lambda app, router: routers.append(router))
        Front()
    return [
        (method, route.path_format.replace("{", "").replace("}", ""), operation.needs)
        for route, operation in declared(routers)
        for method in route.methods
    ]


def form(response: httpx2.Response) -> dict[str, object]:
    """The error of an answer in whichever protocol's form the path is due."""
    body = response.json()
    path = response.request.url.path
    if path.startswith("/v1/messages"):
        assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
        kinds = {401: "authentication_error", 403: "permission_error"}
        assert body["error"]["type"] == kinds[response.status_code]
    else:
        expected = {"type", "message", "code"} | (set() if path.startswith("/api/v1/") else {"param"})
        assert set(body["error"]) == expected, body
        codes = {401: "invalid_api_key", 403: "insufficient_permissions"}
        assert body["error"]["code"] == codes[response.status_code]
    error: dict[str, object] = body["error"]
    return error


async def test_every_route_needs_a_key_with_its_scope(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = routes(monkeypatch)
    assert ("POST", "/v1/chat/completions", "use") in everything and len(everything) > 50
    async with open_front(identify=keys.identify) as front:
        for method, path, need in everything:
            answer = await front.http.request(method, path)
            if need == "nothing":
                assert answer.status_code == 200 and path in ("/health", "/ready")
                continue
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == 'Bearer realm="penstock"'
            assert method == "HEAD" or "penstock keys add" in str(form(answer)["message"])
            for scope in SCOPES:
                is_enough = need == "key" or SCOPES.index(scope) >= SCOPES.index(need)  # type: ignore[arg-type]
                answer = await front.http.request(method, path, headers={"x-api-key": keys.secrets[scope]}, content="{")
                assert (answer.status_code not in (401, 403) or "not_deletable" in answer.text) == is_enough, (
                    path,
                    scope,
                )
                if not is_enough:
                    assert f'scope="{need}"' in answer.headers["www-authenticate"]
                    assert method == "HEAD" or f"'{need}'" in str(form(answer)["message"])
        assert front.engine.jobs == [] and front.engine.unloads == []


async def test_a_probe_needs_no_key_and_learns_no_names(keys: Keys) -> None:
    async with open_front(identify=keys.identify) as front:
        stranger = await front.http.get("/health")
        assert stranger.json()["status"] == "ok" and CHAT not in stranger.text
        known = await front.http.get("/health", headers={"x-api-key": keys.secrets["embeddings"]})
        assert CHAT in known.json()["models"]


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1/nowhere", "/docs/assets/swagger-ui.css", "/health/", "/HEALTH", "/v1/models/../x"]
)
async def test_what_is_no_route_needs_a_key_too(path: str, keys: Keys) -> None:
    async with open_front(identify=keys.identify) as front:
        for method in ("GET", "HEAD", "OPTIONS", "POST", "WAND"):
            answer = await front.http.request(method, path)
            assert answer.status_code == 401 and answer.headers["x-request-id"]
        known = await front.http.get(path, headers={"x-api-key": keys.secrets["embeddings"]})
        assert known.status_code == (200 if path.endswith(".css") else 404)


async def test_a_line_s_end_behind_a_path_opens_no_other_door(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = routes(monkeypatch)
    async with open_front(identify=keys.identify) as front:
        for method, path, _ in everything:
            assert (await front.http.request(method, f"{path}%0A")).status_code == 401
            known = await front.http.request(method, f"{path}%0A", headers={"x-api-key": keys.secrets["admin"]})
            assert known.status_code == 404, (method, path)
        assert front.engine.jobs == [] and front.engine.unloads == []


async def test_what_a_refusal_says_and_does_not_say(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with open_front(identify=keys.identify) as front:
        revoked = await front.http.get("/v1/models", headers={"authorization": f"Bearer {keys.revoked}"})
        wrong = await front.http.get("/v1/models%0Aforged", headers={"authorization": "Bearer sk-penstock-guess"})
    assert revoked.status_code == wrong.status_code == 401
    assert "revoked" in revoked.text and "revoked" not in wrong.text
    assert wrong.headers["www-authenticate"] == 'Bearer realm="penstock", error="invalid_token"'
    metrics = front.app_metrics()
    assert 'penstock_refused_requests_total{reason="invalid_api_key"} 2.0' in metrics
    assert keys.revoked not in caplog.text + revoked.text and "guess" not in caplog.text + wrong.text
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(lines) == 1 and "401 invalid_api_key" in lines[0], "a flood of attempts does not flood the log"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": CHAT, "messages": MESSAGES}),
        ("/v1/completions", {"model": CHAT, "prompt": "hi"}),
        ("/v1/responses", {"model": CHAT, "input": "hi"}),
        ("/v1/messages", {"model": CHAT, "messages": MESSAGES, "max_tokens": 5}),
        ("/api/v1/chat", {"model": CHAT, "input": "hi"}),
        ("/api/v0/chat/completions", {"model": CHAT, "messages": MESSAGES}),
        ("/api/v0/completions", {"model": CHAT, "prompt": "hi"}),
        ("/v1/embeddings", {"model": EMBED, "input": "hi"}),
        ("/v1/rerank", {"model": EMBED, "query": "hi", "documents": ["a"]}),
        ("/v1/score", {"model": EMBED, "text_1": "hi", "text_2": "a"}),
    ],
)
async def test_every_job_carries_who_asked_and_its_weight(path: str, body: dict[str, object]) -> None:
    async with open_front(identify=lambda headers: Principal("p-1", weight=2.5)) as front:
        answer = await front.post(path, body)
        assert answer.status_code == 200, answer.text
        assert {(job.principal, job.weight) for job in front.engine.jobs} == {("p-1", 2.5)}
