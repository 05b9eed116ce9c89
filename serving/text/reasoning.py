"""Separates a model's thinking, written between two markers before its answer, from the answer."""

from dataclasses import dataclass

from .marker_search import MarkerSearch
from .pieces import Piece, PieceParser, ReasoningPiece


@dataclass(frozen=True, slots=True)
class ThinkMarkers:
    """What a model writes around its thinking."""

    open: str
    close: str

    def is_open_after(self, prompt: str) -> bool:
        """Whether the prompt ends within thinking, so that the answer begins there."""
        return prompt.rstrip().endswith(self.open)

    def is_closed_after(self, prompt: str) -> bool:
        """Whether the prompt ends directly after thinking, so that the answer has none."""
        return prompt.rstrip().endswith(self.close)


_KNOWN = (
    ThinkMarkers("<think>", "</think>"),
    ThinkMarkers("[THINK]", "[/THINK]"),
    ThinkMarkers("<seed:think>", "</seed:think>"),
    ThinkMarkers("<|START_THINKING|>", "<|END_THINKING|>"),
    ThinkMarkers("\u25c1think\u25b7", "\u25c1/think\u25b7"),
)


def find_think_markers(template: str) -> ThinkMarkers | None:
    """The markers that a chat template's source mentions: those that cut old thinking out name only the last one."""
    return next((markers for markers in _KNOWN if markers.close in template), None)


class ThinkParser:
    """Thinking first, if there is any, then whatever another parser makes of the rest.

    Line breaks around the markers belong to them and to no text.

    Args:
        markers: the model's.
        rest: takes the text after the thinking.
        starts_inside: the prompt has opened the thinking already.
        are_tokens: each marker is a token and comes as a piece of its own; one after the thinking is no text.
    """

    def __init__(
        self, markers: ThinkMarkers, rest: PieceParser, *, starts_inside: bool, are_tokens: bool = False
    ) -> None:
        self._markers = markers
        self._dropped = (markers.open, markers.close) if are_tokens else ()
        self._rest = rest
        self._close = MarkerSearch([markers.close])
        self._state = "inside" if starts_inside else "before"
        self._held = ""  # white space that may belong to a marker, or the beginning of the first marker
        self._any_reasoning = False

    @property
    def is_reasoning(self) -> bool:
        """See PieceParser."""
        return self._state == "inside" or self._rest.is_reasoning

    def feed(self, text: str, start: int) -> list[Piece]:
        """See PieceParser."""
        match self._state:
            case "before":
                return self._feed_before(text, start)
            case "inside":
                return self._feed_inside(text, start)
            case "gap":
                return self._feed_gap(text, start)
            case _:
                return [] if text in self._dropped else self._rest.feed(text, start)

    def finish(self, *, complete: bool) -> list[Piece]:
        """See PieceParser."""
        if self._state == "inside":
            return self._reasoning(self._close.flush())
        pieces: list[Piece] = []
        if self._state == "before" and self._held:
            pieces = self._rest.feed(self._held, 0)
        return pieces + self._rest.finish(complete=complete)

    def _feed_before(self, text: str, start: int) -> list[Piece]:
        start -= len(self._held)
        text = self._held + text
        self._held = ""
        begun = text.lstrip()
        if begun.startswith(self._markers.open):
            self._state = "inside"
            after = begun[len(self._markers.open) :]
            return self._feed_inside(after, start + len(text) - len(after)) if after else []
        if self._markers.open.startswith(begun):
            self._held = text
            return []
        self._state = "after"
        return self._rest.feed(text, start)

    def _feed_inside(self, text: str, start: int) -> list[Piece]:
        before, marker, after = self._close.feed(text)
        pieces = self._reasoning(before)
        if marker is None:
            return pieces
        self._state, self._held = "gap", ""
        return pieces + (self._feed_gap(after, start + len(text) - len(after)) if after else [])

    def _feed_gap(self, text: str, start: int) -> list[Piece]:
        answer = text.lstrip()
        if not answer:
            return []
        self._state = "after"
        return self._rest.feed(answer, start + len(text) - len(answer))

    def _reasoning(self, text: str) -> list[Piece]:
        """Thinking without white space at its ends: what may be the last is held back."""
        text = self._held + text
        if not self._any_reasoning:
            text = text.lstrip()
        kept = text.rstrip()
        self._held = text[len(kept) :]
        self._any_reasoning = self._any_reasoning or bool(kept)
        return [ReasoningPiece(kept)] if kept else []
