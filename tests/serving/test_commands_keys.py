"""`penstock keys`: what it prints, keeps and refuses."""

import io
import json
import re
from contextlib import closing
from pathlib import Path

import pytest

from penstock.serving.cli import main
from penstock.serving.keys.key import digest
from penstock.serving.keys.key_file import KEY_FILE, KeyFile
from penstock.serving.limits.ledger import LEDGER_FOLDER, Ledger
from penstock.serving.limits.standing import Usage
from penstock.serving.principal import Limits


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    return tmp_path


def test_a_key_is_shown_once_and_only_its_hash_is_kept(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "add", "alice"]) == 0
    printed = capsys.readouterr()
    secret = printed.out.strip()
    assert re.fullmatch(r"sk-penstock-[A-Za-z0-9]{40}", secret) and "not shown again" in printed.err
    (key,) = KeyFile(home / KEY_FILE).read()
    assert (key.name, key.digest, key.scopes, key.weight) == ("alice", digest(secret), frozenset({"use"}), 1.0)
    assert secret.encode() not in (home / KEY_FILE).read_bytes()
    assert main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert "alice" in listed and key.prefix in listed and secret not in listed


CHOSEN = "0123456789abcdef" * 2


def test_a_key_that_is_kept_elsewhere_is_read_from_standard_input(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(secret: str, *arguments: str) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(secret))
        return main(["keys", "add", *arguments, "--stdin"])

    assert add(f"{CHOSEN}\n", "cluster", "--scope", "admin") == 0
    assert add(CHOSEN, "cluster", "--scope", "admin") == 0, "as at every start of a container"
    printed = capsys.readouterr()
    assert CHOSEN not in printed.out + printed.err and "cluster" in printed.out
    (key,) = KeyFile(home / KEY_FILE).read()
    assert (key.digest, key.prefix, key.scopes) == (digest(CHOSEN), CHOSEN[:6], frozenset({"admin"}))
    for wrong in (["cluster"], ["other", "--scope", "admin"]):
        assert add(CHOSEN, *wrong) == 1 and "already, as 'cluster'" in capsys.readouterr().err
    assert main(["keys", "revoke", "cluster"]) == 0
    assert add(CHOSEN, "cluster", "--scope", "admin") == 1, "what was revoked stays so"
    for secret in ("", "short", "x" * 257, CHOSEN + " " + CHOSEN, "é" * 32):
        assert add(secret, "wrong") == 1 and "32 to 256 printable" in capsys.readouterr().err
    assert len(KeyFile(home / KEY_FILE).read()) == 1


def test_all_that_a_key_can_have(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--weight", "2.5", "--scope", "use", "--scope", "admin", "--requests-per-minute", "1"]
    flags += ["--tokens-per-minute", "2000", "--tokens-per-day", "3", "--max-in-flight", "4", "--json"]
    assert main(["keys", "add", "bob", *flags]) == 0
    made = json.loads(capsys.readouterr().out)
    (key,) = KeyFile(home / KEY_FILE).read()
    assert key.digest == digest(made["key"]) and key.weight == 2.5 and key.scopes == {"use", "admin"}
    assert key.limits == Limits(1, 2000, 3, 4)
    assert main(["keys", "list"]) == 0
    assert "2,000 tokens/min" in capsys.readouterr().out
    assert main(["keys", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed == {name: value for name, value in made.items() if name != "key"}


def test_what_a_key_has_used_today_is_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("alice", "bob"):
        assert main(["keys", "add", name]) == 0
    (alice, _) = KeyFile(home / KEY_FILE).read()
    with closing(Ledger(home / LEDGER_FOLDER)) as ledger:
        ledger.charge({alice.principal(): Usage(2, 1500, 34)})
    capsys.readouterr()
    assert main(["keys", "list", "--json"]) == 0
    names = ("name", "requests_today", "prompt_tokens_today", "output_tokens_today")
    listed = [tuple(key[name] for name in names) for key in json.loads(capsys.readouterr().out)]
    assert listed == [("alice", 2, 1500, 34), ("bob", 0, 0, 0)]
    assert main(["keys", "list"]) == 0
    assert re.search(r"alice.*2 requests.*bob.*–", capsys.readouterr().out, re.DOTALL)
    (home / LEDGER_FOLDER / "ledger.sqlite3").write_text("no database at all " * 100)
    assert main(["keys", "list"]) == 1
    assert "what the keys have used cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["name", "prefix", "start", "whole"])
def test_a_key_is_revoked_by_what_people_know_of_it(how: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "add", "alice"]) == 0
    secret = capsys.readouterr().out.strip()
    assert main(["keys", "add", "bob"]) == 0
    (alice, _) = KeyFile(home / KEY_FILE).read()
    told = {"name": "alice", "prefix": alice.prefix, "start": alice.prefix[:-2], "whole": secret}
    assert main(["keys", "revoke", told[how]]) == 0
    alice, bob = KeyFile(home / KEY_FILE).read()
    assert alice.revoked_at is not None and bob.revoked_at is None
    capsys.readouterr()
    assert main(["keys", "revoke", "alice"]) == 1
    assert "bob" in capsys.readouterr().err
    assert main(["keys", "add", "alice"]) == 0, "the name is free again"


def test_what_is_not_clear_is_not_done(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("alice", "bob"):
        assert main(["keys", "add", name]) == 0
    for wrong in (["add", "alice"], ["revoke", "sk-penstock-"], ["revoke", "carol"]):
        capsys.readouterr()
        assert main(["keys", *wrong]) == 1
        assert "alice" in capsys.readouterr().err
    assert all(key.revoked_at is None for key in KeyFile(home / KEY_FILE).read())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["wave"],
        ["add"],
        ["add", ""],
        ["add", "a\nb"],
        ["add", "a" * 65],
        ["add", "a", "--scope", "everything"],
        ["add", "a", "--weight", "0"],
        ["add", "a", "--weight", "nan"],
        ["add", "a", "--tokens-per-day", "-1"],
        ["add", "a", "--max-in-flight", "1.5"],
    ],
)
def test_wrong_usage(arguments: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", *arguments]) == 2
    assert "usage: penstock keys" in capsys.readouterr().err
    assert not (home / KEY_FILE).exists()


def test_help_and_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "--help"]) == 0 and "revoke" in capsys.readouterr().out
    assert main(["keys", "list"]) == 0 and "penstock keys add" in capsys.readouterr().out
