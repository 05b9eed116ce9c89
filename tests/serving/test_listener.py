"""The listening socket: what it says when it cannot be had, and the URL that reaches it."""

import socket

import pytest

from penstock.serving.listener import is_on_loopback, open_listeners, url_of


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_the_url_reaches_the_listener(host: str) -> None:
    (listener,) = open_listeners(host, 0)
    with listener:
        scheme, _, rest = url_of(listener).partition("://")
        name, _, port = rest.rpartition(":")
        assert scheme == "http"
        with socket.create_connection((name.strip("[]"), int(port)), timeout=5):
            pass


def test_an_ipv6_address_is_bracketed() -> None:
    class Listener:
        def getsockname(self) -> tuple[str, int, int, int]:
            return "::", 80, 0, 0

    assert url_of(Listener()) == "http://[::1]:80"  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_impossible_address_is_named(host: str) -> None:
    with pytest.raises(OSError, match=rf"cannot listen on {host} port 0: .+; choose another --port or --host"):
        open_listeners(host, 0)


def test_sockets_of_several_processes_share_a_port_that_nobody_else_gets() -> None:
    first, second = open_listeners("127.0.0.1", 0, 2)
    with first, second:
        port = first.getsockname()[1]
        assert second.getsockname()[1] == port
        for count in (1, 2):
            with pytest.raises(OSError, match="already in use"):
                open_listeners("127.0.0.1", port, count)


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_who_reaches_a_listener(host: str, expected: bool) -> None:
    (opened,) = open_listeners(host, 0)
    with opened:
        assert is_on_loopback(opened) == expected
