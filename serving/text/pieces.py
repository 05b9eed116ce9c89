"""What a model's raw text falls into: thinking, text for the client and tool calls; and what a parser of it does."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text for the client."""

    text: str
    start: int
    """Characters of the raw text before it."""


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """Thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of a tool begins; its name is one of those that may be called."""

    name: str


@dataclass(frozen=True, slots=True)
class CallPart:
    """More of the arguments, or of a custom tool's input."""

    text: str


@dataclass(frozen=True, slots=True)
class CallFinish:
    """The call is complete."""


Piece = TextPiece | ReasoningPiece | CallBegin | CallPart | CallFinish


class PieceParser(Protocol):
    """Takes a growing raw text apart, in time proportional to what is new."""

    @property
    def is_reasoning(self) -> bool:
        """Whether the text is within thinking now."""

    def feed(self, text: str, start: int) -> list[Piece]:
        """Take the next text.

        Args:
            text: what follows the text of the last call.
            start: characters of the raw text before it.
        """

    def finish(self, *, complete: bool) -> list[Piece]:
        """Nothing more comes.

        Args:
            complete: the model ended by itself, and was not cut by a limit.
        """


class PlainParser:
    """All text is for the client."""

    is_reasoning = False

    def feed(self, text: str, start: int) -> list[Piece]:
        """See PieceParser."""
        return [TextPiece(text, start)]

    def finish(self, *, complete: bool) -> list[Piece]:
        """See PieceParser."""
        return []
