"""The models there are: the home's folders, names and aliases, changes on disk, text sides read once."""

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_engine import tiny_tokenizer

from penstock.scheduler.errors import ModelLoadError
from penstock.serving.shelf import registry
from penstock.serving.shelf.card import ModelCard, read_card
from penstock.serving.shelf.registry import Registry, scan_home


def make_model(folder: Path, architecture: str = "LlamaForCausalLM") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (folder / "model.safetensors").touch()
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def make_snapshot(home: Path, name: str) -> Path:
    folder = make_model(home / "hub" / "snapshots" / name.replace("/", "-"))
    mark = home / "hub" / "complete" / name.replace("/", "--")
    mark.parent.mkdir(exist_ok=True)
    mark.write_text(str(folder))
    return folder


def test_the_home_is_searched_for_starters_conversions_snapshots_and_own_folders(tmp_path: Path) -> None:
    for name in ("starter", "tiny.q8-0123456789ab", "owner/own", ".half-done.partial-x"):
        make_model(tmp_path / "models" / name)
    make_model(tmp_path / "models" / "tagger", "BertForTokenClassification")
    make_snapshot(tmp_path, "Org/Model-1.5B")
    (tmp_path / "hub" / "complete" / "gone--model").write_text(str(tmp_path / "nowhere"))
    (tmp_path / "hub" / "complete" / "no--mark").write_bytes(b"\xff\0")
    (tmp_path / "hub" / "complete" / "a--folder").mkdir()
    (tmp_path / "models" / "empty").mkdir()
    assert [card.name for card in scan_home(tmp_path)] == ["Org/Model-1.5B", "owner/own", "starter", "tiny.q8"]
    assert scan_home(tmp_path / "no-home") == []


def test_the_newest_conversion_of_a_file_counts(tmp_path: Path) -> None:
    for age, fingerprint in ((20, "0" * 12), (10, "1" * 12), (30, "2" * 12)):
        folder = make_model(tmp_path / "models" / f"tiny-{fingerprint}")
        os.utime(folder / "config.json", (1000 - age, 1000 - age))
    (card,) = scan_home(tmp_path)
    assert card.folder.name == "tiny-" + "1" * 12


async def test_what_appears_or_goes_is_noticed_without_a_restart(tmp_path: Path) -> None:
    shelf = Registry([], home=tmp_path)
    assert await shelf.find("a") is None
    make_model(tmp_path / "models" / "a")
    make_snapshot(tmp_path, "org/b")
    assert await shelf.find("a") == read_card("a", tmp_path / "models" / "a")
    assert (await shelf.text(await found(shelf, "org/b"))).name == "org/b"
    (tmp_path / "models" / "a").rename(tmp_path / "away")
    await shelf.refresh()
    assert [card.name for card in shelf.cards()] == ["org/b"]


async def test_an_unchanged_home_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "models" / "a")
    shelf = Registry([], home=tmp_path)
    await shelf.refresh()
    monkeypatch.setattr(registry, "scan_home", None)
    await shelf.refresh()
    assert await shelf.find("unknown") is None


async def test_models_of_the_command_line_win_over_the_homes(tmp_path: Path) -> None:
    renamed = read_card("served-name", make_model(tmp_path / "models" / "a"))
    other = read_card("b", make_model(tmp_path / "elsewhere" / "b"))
    make_model(tmp_path / "models" / "b")
    shelf = Registry([renamed, other], home=tmp_path)
    await shelf.refresh()
    assert shelf.cards() == [renamed, other]


async def test_aliases_and_defaults(tmp_path: Path) -> None:
    a, b = (read_card(name, make_model(tmp_path / name)) for name in "ab")
    shelf = Registry([a, b], aliases={"gpt-4o": "b", "a": "b", "loop": "loop"}, defaults={"generate": "gpt-4o"})
    assert shelf.get("gpt-4o") == b and shelf.get("a") == a and shelf.get("loop") is None
    assert await shelf.find("unknown") is None
    assert await shelf.find("unknown", "generate") == b and await shelf.find("", "generate") == b
    assert await shelf.find("unknown", "embed") is None


async def test_a_text_side_is_read_once_however_many_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = read_card("a", make_model(tmp_path / "a"))
    shelf = Registry([card])
    reads: list[Any] = []
    real, go = registry.read_text, threading.Event()

    def read(card: ModelCard) -> Any:
        reads.append(card)
        assert go.wait(10)
        return real(card)

    monkeypatch.setattr(registry, "read_text", read)
    asking = [asyncio.create_task(shelf.text(card)) for _ in range(5)]
    await asyncio.sleep(0)
    asking.pop().cancel()
    go.set()
    texts = await asyncio.gather(*asking)
    assert all(text is texts[0] for text in texts) and await shelf.text(card) is texts[0]
    assert reads == [card]


async def test_a_broken_text_side_is_remembered_until_it_is_mended(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "a")
    good = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(b"{")
    shelf = Registry([read_card("a", folder)])
    with pytest.raises(ModelLoadError, match="text files of a"):
        await shelf.text(await found(shelf, "a"))
    assert "text files of a" in shelf.broken["a"]
    (folder / "tokenizer.json").write_bytes(good)
    await shelf.text(await found(shelf, "a"))
    assert shelf.broken == {}


async def found(shelf: Registry, name: str) -> ModelCard:
    card = await shelf.find(name)
    assert card is not None
    return card
