"""From a MODEL argument to a model folder, without network and without conversion."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from rich.console import Console

from penstock.scheduler.errors import ModelLoadError
from penstock.serving.shelf import conversion, sources
from penstock.serving.shelf.card import read_card
from penstock.serving.shelf.sources import resolve_models


def quiet() -> Console:
    return Console(file=io.StringIO())


def make_folder(folder: Path, architecture: str = "LlamaForCausalLM", *files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    for name in ("model.safetensors", "tokenizer.json", *files):
        (folder / name).touch()
    return folder


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The GGUF files that were converted."""
    converted: list[Path] = []

    def convert(source: Path, destination: Path, progress: Callable[[str, float], None]) -> None:
        converted.append(source)
        make_folder(destination)

    monkeypatch.setattr(conversion, "convert_gguf", convert)
    return converted


def test_a_folder_is_served_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "My-Model")
    monkeypatch.chdir(folder)
    assert resolve_models(["."], tmp_path, quiet()) == [read_card("My-Model", folder)]


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", "LlamaForCausalLM", "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="pickled ones can run code"):
        resolve_models([str(folder)], tmp_path, quiet())


def test_a_missing_tokenizer_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    converted: list[Path] = []
    monkeypatch.setattr(sources, "convert_tokenizer", converted.append)
    resolve_models([str(folder)], tmp_path, quiet())
    assert converted == [folder]


def test_a_gguf_file_is_converted_once_and_again_when_it_changes(tmp_path: Path, conversions: list[Path]) -> None:
    file = tmp_path / "Tiny.Q8_0.GGUF"
    file.write_bytes(b"1")
    (model,) = resolve_models([str(file)], tmp_path / "home", quiet())
    assert (model.name, model.kind, model.folder.parent) == ("tiny.q8_0", "generate", tmp_path / "home" / "models")
    assert resolve_models([str(file)], tmp_path / "home", quiet()) == [model]
    assert conversions == [file]
    os.utime(file, (1, 1))
    (changed,) = resolve_models([str(file)], tmp_path / "home", quiet())
    assert changed.folder != model.folder
    assert conversions == [file, file]


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, destination: Path, progress: Callable[[str, float], None]) -> None:
        raise ModelLoadError("unknown pre-tokenizer")

    monkeypatch.setattr(conversion, "convert_gguf", refuse)
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ModelLoadError, match="unknown pre-tokenizer"):
        resolve_models([str(tmp_path / "a.gguf")], tmp_path, quiet())
    assert list((tmp_path / "models").iterdir()) == []


def test_a_conversion_shows_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=140)

    def convert(source: Path, destination: Path, progress: Callable[[str, float], None]) -> None:
        progress("dequantising", 0.3)

    monkeypatch.setattr(conversion, "convert_gguf", convert)
    conversion.convert_with_bar(tmp_path / "a.gguf", tmp_path / "a", "a.gguf", screen)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "Converting a.gguf" in shown and "30%" in shown and "dequantising" in shown


def test_a_conversion_that_another_server_has_made_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(source: Path, destination: Path, progress: Callable[[str, float], None]) -> None:
        make_folder(destination)
        raise ModelLoadError("exists already")

    monkeypatch.setattr(conversion, "convert_gguf", lose)
    conversion.convert_with_bar(tmp_path / "a.gguf", tmp_path / "a", "a.gguf", quiet())


@pytest.mark.parametrize("argument", ["gpt-5", "/no/such/folder", "no-such.gguf", "", "a/b/c"])
def test_an_unknown_name_gets_the_list_of_starters(tmp_path: Path, argument: str) -> None:
    with pytest.raises(ModelLoadError, match=r"unknown model .* smollm2-135m-instruct, all-minilm-l6-v2\."):
        resolve_models([argument], tmp_path, quiet())


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    first, second = make_folder(tmp_path / "1" / "m"), make_folder(tmp_path / "2" / "m")
    with pytest.raises(ModelLoadError, match="would both be served as 'm'"):
        resolve_models([str(first), str(second)], tmp_path, quiet())


def test_no_argument_means_the_starters(tmp_path: Path) -> None:
    make_folder(tmp_path / "models" / "smollm2-135m-instruct")
    make_folder(tmp_path / "models" / "all-minilm-l6-v2", "BertModel")
    assert [(model.name, model.kind) for model in resolve_models([], tmp_path, quiet())] == [
        ("smollm2-135m-instruct", "generate"),
        ("all-minilm-l6-v2", "embed"),
    ]


def test_a_hub_model_is_fetched_once_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []

    def download(repository: str, **options: object) -> str:
        calls.append(options)
        return str(make_folder(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (model,) = resolve_models(["owner/Name-1.5B"], tmp_path, quiet())
    assert model == read_card("owner/Name-1.5B", tmp_path / "snapshot")
    assert resolve_models(["owner/Name-1.5B"], tmp_path, quiet()) == [model]
    (options,) = calls
    patterns = options["allow_patterns"]
    assert isinstance(patterns, list) and "*.safetensors" in patterns and "*.bin" not in patterns


def test_an_interrupted_hub_download_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repository: str, **options: object) -> str:
        make_folder(tmp_path / "hub" / "snapshot")
        raise LocalEntryNotFoundError("no connection\nand more words")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    for _ in range(2):
        with pytest.raises(ModelLoadError, match=r"could not be fetched from the Hub: no connection \(without"):
            resolve_models(["owner/name"], tmp_path, quiet())


def test_what_the_home_has_is_found_by_its_name(tmp_path: Path, conversions: list[Path]) -> None:
    file = tmp_path / "Tiny.gguf"
    file.touch()
    (converted,) = resolve_models([str(file)], tmp_path / "home", quiet())
    file.unlink()
    own = make_folder(tmp_path / "home" / "models" / "owner" / "own")
    found = resolve_models(["tiny", "owner/own"], tmp_path / "home", quiet())
    assert found == [converted, read_card("owner/own", own)]
