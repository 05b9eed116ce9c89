"""Finds the blocks in a model's text in which it calls tools; the rest is for the client."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from ..marker_search import MarkerSearch
from ..pieces import CallBegin, CallFinish, Piece, TextPiece


class NoCallError(ValueError):
    """What looked like a call is none, and becomes text."""


class BlockReader(Protocol):
    """Reads one block after the marker that begins it."""

    @property
    def is_over(self) -> bool:
        """Whether the block has ended."""

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """Take more text.

        Returns:
            What has come of it, and the text that is left after a complete call or after the block.

        Raises:
            NoCallError: the block is no call after all; nothing since its beginning, or since its last complete call,
                has come of it.
        """

    def finish(self, *, complete: bool) -> list[Piece]:
        """The text has ended within the block.

        Args:
            complete: the model ended by itself, and was not cut by a limit.

        Raises:
            NoCallError: as for `feed`.
        """


class BlockParser:
    """Text with blocks. White space between text and blocks belongs to neither.

    Args:
        readers: makes a reader for each marker that begins a block.
        hidden: control tokens, which no text for the client may contain.
        at_start: makes a reader for an answer that begins with this character, as bare JSON does.
    """

    is_reasoning = False

    def __init__(
        self,
        readers: Mapping[str, Callable[[], BlockReader]],
        hidden: Iterable[str] = (),
        at_start: tuple[str, Callable[[], BlockReader]] | None = None,
    ) -> None:
        self._readers = readers
        self._search = MarkerSearch(list(readers)) if readers else None
        hidden = sorted(hidden, key=len, reverse=True)
        self._hidden = re.compile("|".join(map(re.escape, hidden))) if hidden else None
        self._at_start = at_start
        self._reader: BlockReader | None = None
        self._marker = ""  # that has begun the block, until there is a call
        self._unread = ""  # raw text of the block that belongs to no call yet, with the marker
        self._in_call = False
        self._end = 0  # of the raw text so far
        self._space = ""  # held back: it may stand before a call
        self._any_text = self._any_call = self._after_call = False

    def feed(self, text: str, start: int) -> list[Piece]:
        """See PieceParser."""
        self._end = start + len(text)
        pieces: list[Piece] = []
        rest = text
        while rest:
            rest = self._feed_block(rest, pieces) if self._reader is not None else self._feed_text(rest, pieces)
        return pieces

    def finish(self, *, complete: bool) -> list[Piece]:
        """See PieceParser."""
        pieces: list[Piece] = []
        while self._reader is not None:
            try:
                self._take(self._reader.finish(complete=complete), pieces)
                break
            except NoCallError:
                rest = self._reject(pieces)
                while rest:
                    rest = self._feed_block(rest, pieces) if self._reader is not None else self._feed_text(rest, pieces)
        if self._reader is None and self._search is not None:
            self._give_text(self._search.flush(), pieces, end=self._end)
        if self._space and not self._any_call:
            pieces.append(TextPiece(self._space, self._end - len(self._space)))
        return pieces

    def _feed_text(self, text: str, pieces: list[Piece]) -> str:
        if self._at_start is not None and not self._any_text and not self._any_call:
            begun = text.lstrip()
            if begun.startswith(self._at_start[0]):
                self._space += text[: len(text) - len(begun)]
                self._reader, self._marker, self._unread = self._at_start[1](), "", ""
                self._at_start = None
                return begun
        if self._search is None:
            self._give_text(text, pieces, end=self._end)
            return ""
        before, marker, after = self._search.feed(text)
        if marker is None:
            self._give_text(before, pieces, end=self._end - len(self._search.held))
            return ""
        self._give_text(before, pieces, end=self._end - len(after) - len(marker))
        self._reader, self._marker, self._unread = self._readers[marker](), marker, marker
        return after

    def _feed_block(self, text: str, pieces: list[Piece]) -> str:
        assert self._reader is not None
        if not self._in_call:
            self._unread += text
        try:
            new, rest = self._reader.feed(text)
        except NoCallError:
            return self._reject(pieces)
        self._unread = self._unread[: len(self._unread) - len(rest)]
        self._take(new, pieces)
        if self._reader.is_over:
            self._reader = None
        return rest

    def _reject(self, pieces: list[Piece]) -> str:
        """The block is no call: its marker is text, and what follows is read again."""
        text, marker = self._unread, self._marker
        self._reader, self._unread, self._marker = None, "", ""
        self._give_text(marker, pieces, end=self._end - len(text) + len(marker))
        return text[len(marker) :]

    def _take(self, new: list[Piece], pieces: list[Piece]) -> None:
        for piece in new:
            if isinstance(piece, CallBegin | CallFinish):
                self._in_call = isinstance(piece, CallBegin)
                self._any_call = self._after_call = True
                self._space = self._unread = self._marker = ""
        pieces += new

    def _give_text(self, text: str, pieces: list[Piece], *, end: int) -> None:
        """Text that ends at `end` of the raw text, without control tokens, the white space at its end held back."""
        if not text:
            return
        start = end - len(text)
        at = 0
        for hidden in self._hidden.finditer(text) if self._hidden is not None else ():
            self._give_visible(text[at : hidden.start()], start + at, pieces)
            at = hidden.end()
        self._give_visible(text[at:], start + at, pieces)

    def _give_visible(self, text: str, start: int, pieces: list[Piece]) -> None:
        if not text:
            return
        kept = text.rstrip()
        if not kept:
            self._space += text
            return
        begin = 0
        if self._after_call:
            begin = len(kept) - len(kept.lstrip())
        elif self._space:
            pieces.append(TextPiece(self._space, start - len(self._space)))
        pieces.append(TextPiece(kept[begin:], start + begin))
        self._space = text[len(kept) :]
        self._any_text, self._after_call = True, False
