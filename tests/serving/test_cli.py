"""The command line: subcommands, flags, exit statuses, and no traceback for a wrong one."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from penstock.serving import cli, server
from penstock.serving.bench import cli as bench_cli
from penstock.serving.settings import Settings


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What the server would have been started with."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"PENSTOCK_{name.upper()}", raising=False)
    started: list[Settings] = []

    def serve(settings: Settings) -> int:
        started.append(settings)
        return 0

    monkeypatch.setattr(server, "serve", serve)
    return started


def test_flags_and_models_may_be_mixed(served: list[Settings]) -> None:
    status = cli.main(["serve", "a,b", "--max-model-len", "128", "c", "--no-enable-prefix-caching", "--port=0"])
    assert status == 0
    (settings,) = served
    assert settings.models == ["a,b", "c"]
    assert (settings.max_model_len, settings.enable_prefix_caching, settings.port) == (128, False, 0)


def test_models_of_the_environment_stand_when_no_argument_names_any(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_MODELS", "m")
    assert cli.main(["serve"]) == 0
    assert served[0].models == ["m"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--port", "99999"], "penstock serve: error: port is '99999'"),
        (["serve", "--bogus"], "unrecognized arguments: --bogus"),
        (["serve", "--max-num", "3"], "unrecognized arguments: --max-num"),
        (["server"], "unknown command 'server'; the commands are serve, chat, pull,"),
        ([], "usage: penstock"),
    ],
)
def test_wrong_usage_ends_with_status_two_and_one_clear_line(
    served: list[Settings], capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert words in output.err and "Traceback" not in output.err
    assert output.out == ""
    assert served == []


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in Settings.model_fields.keys() - {"models"}:
        assert "--" + name.replace("_", "-") in shown
    assert cli.main(["--help"]) == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"penstock {version('penstock')}\n"


def test_bench_gets_all_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cli, "run", lambda arguments: len(arguments))
    assert cli.main(["bench", "--url", "x", "--json"]) == 3


def test_the_front_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, penstock.serving.cli, penstock.serving.server, penstock.serving.app;"
        "print([m for m in ('torch', 'transformers', 'sentence_transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
