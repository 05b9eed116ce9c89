"""Every model that this server can serve, by the names clients use: cards at once, tokenizers when first needed.

Models come from the command line and from the server's home (`scan_home`). The home is looked at again whenever one of
its folders has changed, so what `penstock pull` brings is there without a restart.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from penstock.scheduler.config import ModelKind
from penstock.scheduler.errors import ModelLoadError
from penstock.scheduler.launch import convert_tokenizer

from ..text.served_model import ServedModel, load_served_model
from .card import ModelCard, read_card

_FINGERPRINT = re.compile(r"-[0-9a-f]{12}$")  # of a GGUF file, behind its name


class Registry:
    """The models on the shelf.

    Args:
        named: the models of the command line; they win over others of the same name or folder.
        home: the server's home; None: there are no others.
        aliases: other names of models; a model that has such a name itself wins.
        defaults: by kind, the model that answers to unknown names and to none.
        texts: text sides that have been read already.
        broken: why others could not be read.

    Attributes:
        texts: the text sides that have been read, by id.
        broken: why others could not be read, by id.
    """

    def __init__(
        self,
        named: Iterable[ModelCard],
        *,
        home: Path | None = None,
        aliases: Mapping[str, str] | None = None,
        defaults: Mapping[ModelKind, str] | None = None,
        texts: dict[str, ServedModel] | None = None,
        broken: Mapping[str, str] | None = None,
    ) -> None:
        self.aliases = dict(aliases or {})
        self.texts = texts if texts is not None else {}
        self.broken = dict(broken or {})
        self._named = {card.name: card for card in named}
        self._cards = dict(self._named)
        self._home = home
        self._defaults = dict(defaults or {})
        self._seen: tuple[int, ...] = ()
        self._reading: dict[str, asyncio.Task[ServedModel]] = {}

    def cards(self) -> list[ModelCard]:
        """All models, those of the command line first, as of the last refresh."""
        return list(self._cards.values())

    def get(self, name: str) -> ModelCard | None:
        """The model of that name or alias, as of the last refresh."""
        return self._cards.get(name) or self._cards.get(self.aliases.get(name, ""))

    async def find(self, name: str, kind: ModelKind | None = None) -> ModelCard | None:
        """The model of that name or alias, else the default of that kind, if there is one."""
        card = self.get(name)
        if card is None:
            await self.refresh()
            card = self.get(name)
        if card is None and kind is not None:
            card = self.get(self._defaults.get(kind, ""))
        return card

    async def refresh(self) -> None:
        """Look at the home again if something there has changed."""
        if self._home is None or (seen := _fingerprint(self._home)) == self._seen:
            return
        found = await asyncio.to_thread(scan_home, self._home, self._cards.values())
        self._seen = seen
        folders = {card.folder.resolve() for card in self._named.values()}
        others = {card.name: card for card in found if card.folder.resolve() not in folders}
        for name, card in others.items():
            if (old := self._cards.get(name)) is not None and old.folder != card.folder:
                self.texts.pop(name, None)
        self._cards = {**self._named, **{name: card for name, card in others.items() if name not in self._named}}

    async def text(self, card: ModelCard) -> ServedModel:
        """The text side of a model, read off the event loop and only once, however many ask.

        Raises:
            ModelLoadError: its files cannot be used.
        """
        served = self.texts.get(card.name)
        if served is not None:
            return served
        task = self._reading.get(card.name)
        if task is None:
            task = self._reading[card.name] = asyncio.create_task(asyncio.to_thread(read_text, card))
            task.add_done_callback(lambda done: self._keep(card.name, done))
        return await asyncio.shield(task)

    def _keep(self, name: str, done: "asyncio.Task[ServedModel]") -> None:
        del self._reading[name]
        self.broken.pop(name, None)
        if done.cancelled():
            return
        if (error := done.exception()) is not None:
            self.broken[name] = str(error)
        else:
            self.texts[name] = done.result()


def read_text(card: ModelCard) -> ServedModel:
    """The text side of a model; a slow tokenizer is converted first.

    Raises:
        ModelLoadError: its files cannot be used.
    """
    if not (card.folder / "tokenizer.json").is_file():
        convert_tokenizer(card.folder)
    return load_served_model(card.name, card.kind, card.folder)


def scan_home(home: Path, known: Iterable[ModelCard] = ()) -> list[ModelCard]:
    """The models in the server's home, sorted by name; folders that hold none are passed over.

    `known` are cards that need not be read again. Of several conversions of one GGUF file the newest counts.
    """
    old = {(card.name, card.folder): card for card in known}
    cards: dict[str, ModelCard] = {}
    for name, folder in (*_model_folders(home / "models"), *_snapshots(home / "hub")):
        try:
            card = old.get((name, folder)) or read_card(name, folder)
        except (ModelLoadError, OSError):
            continue
        if name not in cards or cards[name].created < card.created:
            cards[name] = card
    return [cards[name] for name in sorted(cards)]


def _model_folders(models: Path) -> Iterator[tuple[str, Path]]:
    """`name` and `owner/name` folders under home/models."""
    for folder in _subfolders(models):
        if (folder / "config.json").is_file():
            yield _FINGERPRINT.sub("", folder.name), folder
        else:
            for inner in _subfolders(folder):
                yield f"{folder.name}/{inner.name}", inner


def _snapshots(hub: Path) -> Iterator[tuple[str, Path]]:
    """What the Hub has given completely: each file in hub/complete holds a snapshot's folder."""
    complete = hub / "complete"
    for mark in sorted(complete.iterdir()) if complete.is_dir() else ():
        try:
            folder = Path(mark.read_text(encoding="utf-8"))
            complete_copy = folder.is_dir()
        except (OSError, ValueError):  # whatever lies there, it is no mark of ours
            continue
        if complete_copy:
            yield mark.name.replace("--", "/", 1), folder


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _fingerprint(home: Path) -> tuple[int, ...]:
    """Changes whenever a model appears in the home or goes."""
    folders = (home / "models", *_subfolders(home / "models"), home / "hub" / "complete")
    return tuple(folder.stat().st_mtime_ns if folder.is_dir() else 0 for folder in folders)


def stored_folders(home: Path, name: str) -> list[Path]:
    """What must be deleted in the home so that a model is gone: its folders, and the Hub's mark that it is complete."""
    folders = [folder for found, folder in _model_folders(home / "models") if found == name]
    repository = name.replace("/", "--")
    hub = (home / "hub" / "complete" / repository, home / "hub" / f"models--{repository}")
    return [*folders, *(path for path in hub if path.exists())]
