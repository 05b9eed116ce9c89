"""The text of one choice on its way to the client: stop strings end it, the tokens' log probabilities keep step."""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.scheduler.messages import TokenLogprobs

from ..text.stop_strings import StopStrings


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """A token of the text with its log probabilities."""

    token_id: int
    logprobs: TokenLogprobs
    offset: int
    """Characters of the choice's text before the token."""


class WatchedText:
    """Holds back what may become a stop string, and the tokens whose text is held back.

    Args:
        stop: stop strings.

    Attributes:
        stop_string: the stop string that has ended the text.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop_string: str | None = None
        self._stops = StopStrings(stop) if stop else None
        self._num_characters = 0  # taken
        self._num_sent = 0  # of those, given out
        self._entries: list[TokenEntry] = []

    def feed(self, text: str, *, watch: bool = True) -> str:
        """Take more text.

        Args:
            text: what is new.
            watch: whether stop strings count by now.

        Returns:
            The text that can be sent.
        """
        self._num_characters += len(text)
        if self._stops is not None and text and watch:
            text, self.stop_string = self._stops.feed(text)
        self._num_sent += len(text)
        return text

    def flush(self) -> str:
        """The text that was held back, if no stop string has ended it."""
        if self._stops is None or self.stop_string is not None:
            return ""
        held = self._stops.flush()
        self._num_sent += len(held)
        return held

    def add_token(self, token_id: int, logprobs: TokenLogprobs, *, ahead: int = 0) -> None:
        """A token whose text comes next, after `ahead` other characters."""
        self._entries.append(TokenEntry(token_id, logprobs, self._num_characters + ahead))

    def release_entries(self) -> list[TokenEntry]:
        """The tokens that begin in the text given out so far.

        Tokens without text of their own (a part of a character, a special token) go out with what surrounds them; at
        the end of a choice the others are dropped.
        """
        if not self._entries:
            return []
        everything = self._num_sent == self._num_characters
        released = [entry for entry in self._entries if everything or entry.offset < self._num_sent]
        self._entries = self._entries[len(released) :]
        return released
