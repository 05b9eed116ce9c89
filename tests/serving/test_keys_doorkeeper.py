"""Who comes in: everybody while there is no key, but no page of the web, and then only who has a valid one."""

from contextlib import closing
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from penstock.serving.errors import ApiError
from penstock.serving.keys.doorkeeper import Doorkeeper, anybody
from penstock.serving.keys.key import new_key
from penstock.serving.keys.key_file import KeyFile
from penstock.serving.keys.ring import KeyRing
from penstock.serving.principal import EVERYBODY, Limits, Principal


@pytest.mark.parametrize("headers", [{}, {"authorization": ""}, {"authorization": "Bearer "}, {"x-api-key": " "}])
def test_who_sends_no_key_is_everybody(headers: dict[str, str]) -> None:
    assert anybody(Headers(headers)) == EVERYBODY


def test_one_key_is_one_principal_in_whichever_header() -> None:
    by_bearer = anybody(Headers({"authorization": "Bearer abc"}))
    assert by_bearer == anybody(Headers({"authorization": "bearer  abc "})) == anybody(Headers({"x-api-key": "abc"}))
    assert by_bearer.id not in ("", anybody(Headers({"x-api-key": "abd"})).id)
    assert "abc" not in repr(by_bearer)


def test_a_key_brings_its_name_weight_scopes_and_limits(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.sqlite3")
    limits = Limits(requests_per_minute=1, tokens_per_minute=2, tokens_per_day=3, max_in_flight=4)
    secret, key = new_key("alice", frozenset({"use"}), 2.0, limits, 1.0)
    file.add(key)
    with closing(KeyRing(file, no_auth=False, since=0.0)) as ring:
        came = Doorkeeper(ring, refuses_pages=True).identify(Headers({"x-api-key": secret, "host": "evil.example"}))
    assert came == Principal(
        anybody(Headers({"x-api-key": secret})).id, "alice", 2.0, frozenset({"use", "embeddings"}), limits
    )


PRIVATE = [
    "localhost", "localhost:1234", "127.0.0.1:1234", "[::1]:1234", "10.0.0.7", "gpu-box:1234", "gpu-box.local",
    "host.docker.internal:1234", "penstock.localhost", "",
]  # fmt: skip
PUBLIC = [
    "evil.example",
    "evil.example:1234",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "a.b]",
    "a.local.b:x",
]


def refused(tmp_path: Path, headers: dict[str, str], *, refuses_pages: bool = True) -> str | None:
    """The code with which an open server refuses a request."""
    with closing(KeyRing(KeyFile(tmp_path / "none"), no_auth=False, since=0.0)) as ring:
        try:
            assert Doorkeeper(ring, refuses_pages=refuses_pages).identify(Headers(headers)) == EVERYBODY
        except ApiError as error:
            assert error.status == 403
            return error.code
        return None


@pytest.mark.parametrize("host", PRIVATE)
def test_an_open_server_is_called_by_private_names(host: str, tmp_path: Path) -> None:
    assert refused(tmp_path, {"host": host}) is None
    if host:
        assert refused(tmp_path, {"host": "localhost:1234", "origin": f"http://{host}"}) is None


@pytest.mark.parametrize("host", PUBLIC)
def test_an_open_server_answers_no_page_of_the_web(host: str, tmp_path: Path) -> None:
    assert refused(tmp_path, {"host": host}) == "host_not_allowed"
    for scheme in ("http", "https"):
        origin = {"host": "localhost:1234", "origin": f"{scheme}://{host}"}
        assert refused(tmp_path, origin) == "origin_not_allowed"
    assert refused(tmp_path, {"host": host}, refuses_pages=False) is None


def test_a_page_without_a_name_is_a_page_and_an_application_is_none(tmp_path: Path) -> None:
    assert refused(tmp_path, {"origin": "null"}) == "origin_not_allowed"
    assert refused(tmp_path, {"origin": "app://obsidian.md"}) is None
