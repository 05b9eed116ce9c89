"""The keys in memory follow the file, fail safe with it, and say seldom that they were used."""

import logging
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from penstock.serving.keys.key import Key, digest, new_key
from penstock.serving.keys.key_file import KeyFile, KeyFileError
from penstock.serving.keys.ring import KeyRing
from penstock.serving.principal import Limits, Principal


def add(path: Path, name: str) -> tuple[str, Key]:
    """Another process makes a key; its digest, and its row."""
    with closing(KeyFile(path)) as file:
        _, key = new_key(name, frozenset({"use"}), 1.0, Limits(), time.time())
        file.add(key)
    return key.digest, key


def revoke(path: Path, key: Key, now: float | None = None) -> None:
    with closing(KeyFile(path)) as file:
        file.read()
        file.revoke(key, time.time() if now is None else now)


def ring_of(path: Path, *, no_auth: bool = False, since: float = 0.0) -> KeyRing:
    return KeyRing(KeyFile(path), no_auth=no_auth, since=since)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "keys.sqlite3"


def test_the_ring_follows_the_file(path: Path) -> None:
    with closing(ring_of(path)) as ring:
        assert ring.is_open and not path.parent.exists(), "a server without keys makes no file"
        alice, row = add(path, "alice")
        assert ring.find(alice) is None
        ring.refresh()
        found = ring.find(alice)
        assert found is not None and found.name == "alice" and not ring.is_open
        bob, _ = add(path, "bob")
        revoke(path, row)
        ring.refresh()
        assert ring.find(alice) is None and ring.was_revoked(alice) and ring.find(bob) is not None
        assert not ring.was_revoked(digest("unknown"))


def test_who_has_an_id_is_known_until_the_key_is_revoked(path: Path) -> None:
    with closing(ring_of(path)) as ring:
        assert ring.find_by_id("anything") == Principal("anything"), "no key is needed"
        _, row = add(path, "alice")
        ring.refresh()
        assert ring.find_by_id(row.principal().id) == row.principal()
        assert ring.find_by_id("anything") is None
        revoke(path, row)
        ring.refresh()
        assert ring.find_by_id(row.principal().id) is None


def test_revoking_the_last_key_does_not_open_the_server(path: Path) -> None:
    _, row = add(path, "alice")
    revoke(path, row, now=100.0)
    with closing(ring_of(path)) as ring:
        assert not ring.is_open
    with closing(ring_of(path, no_auth=True, since=200.0)) as ring:
        assert ring.is_open, "who starts it so knows that the keys were revoked"
        _, row = add(path, "bob")
        ring.refresh()
        assert not ring.is_open
        revoke(path, row)
        ring.refresh()
        assert not ring.is_open, "a key of this server's time closes it for good"


@pytest.mark.parametrize("harm", ["delete", "damage"])
def test_a_file_that_is_lost_opens_nothing(harm: str, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alice, _ = add(path, "alice")
    with closing(ring_of(path)) as ring:
        if harm == "delete":
            path.unlink()
        else:
            path.with_name("other").write_bytes(b"no database" * 1000)
            path.with_name("other").rename(path)
        for _ in range(3):
            ring.refresh()
            assert not ring.is_open and ring.find(alice) is not None
        (complaint,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert str(path) in complaint.getMessage()
        path.unlink(missing_ok=True)
        bob, _ = add(path, "bob")
        ring.refresh()
        assert ring.find(bob) is not None and ring.find(alice) is None


def test_a_server_does_not_start_with_keys_that_it_cannot_read(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(KeyFileError, match="cannot be used"):
        ring_of(path)


def test_a_newer_file_is_refused(path: Path) -> None:
    add(path, "alice")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(KeyFileError, match="version is 9"):
        ring_of(path)


def test_the_use_of_a_key_is_written_down_seldom(path: Path) -> None:
    alice, _ = add(path, "alice")
    bob, _ = add(path, "bob")

    def last_used(number: int) -> float | None:
        with closing(KeyFile(path)) as file:
            return file.read()[number].last_used_at

    ring = ring_of(path)
    ring.refresh()
    assert last_used(0) is None
    ring.find(alice)
    ring.refresh()
    first = last_used(0)
    assert first is not None and last_used(1) is None
    ring.find(alice)
    ring.refresh()
    assert last_used(0) == first, "a minute has not passed"
    ring.find(bob)
    ring.close()
    assert last_used(1) is not None, "what is not written yet is at the end"


def test_the_thread_follows_and_ends(path: Path) -> None:
    with closing(ring_of(path)) as ring:
        ring.start()
        alice, _ = add(path, "alice")
        while ring.find(alice) is None:
            time.sleep(0.01)


def test_only_its_owner_reads_the_file(path: Path) -> None:
    previous = os.umask(0)
    try:
        secret_digest, _ = add(path, "alice")
    finally:
        os.umask(previous)
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret_digest.encode() in path.read_bytes(), "what is kept is the digest"
