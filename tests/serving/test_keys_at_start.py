"""A server that other machines reach does not start without keys by mistake."""

import logging
from pathlib import Path

import pytest

from penstock.serving.keys.at_start import check_keys
from penstock.serving.keys.key import new_key
from penstock.serving.keys.key_file import KEY_FILE, KeyFile
from penstock.serving.principal import Limits
from penstock.serving.settings import Settings, SettingsError


def add_key(home: Path, *, revoked: bool = False) -> None:
    file = KeyFile(home / KEY_FILE)
    _, key = new_key("alice", frozenset({"use"}), 1.0, Limits(), 1.0)
    file.add(key)
    if revoked:
        file.revoke(key, 2.0)
    file.close()


def warned(home: Path, caplog: pytest.LogCaptureFixture, *, auth: bool = True, on_loopback: bool = False) -> str:
    caplog.set_level(logging.WARNING)
    check_keys(Settings(home=home, host="h", auth=auth), on_loopback=on_loopback)
    return caplog.text


def test_without_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SettingsError, match="host is 'h'.*penstock keys add NAME.*--no-auth"):
        check_keys(Settings(home=tmp_path, host="h"), on_loopback=False)
    assert warned(tmp_path, caplog, on_loopback=True) == warned(tmp_path, caplog, auth=False) == ""


def test_with_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_key(tmp_path)
    assert warned(tmp_path, caplog) == ""
    assert "--no-auth changes nothing" in warned(tmp_path, caplog, auth=False)


def test_with_keys_that_are_all_revoked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_key(tmp_path, revoked=True)
    assert warned(tmp_path, caplog, auth=False) == ""
    assert "every request is refused" in warned(tmp_path, caplog)
