"""Finds stop strings in a growing text without letting any part of one out."""

from collections.abc import Sequence


class StopStrings:
    """Watches the text of one choice.

    The stop string that is complete first wins, and of those complete at the same character the longest: what comes
    out does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = list(stops)
        self._longest = max(map(len, self._stops))
        self._held = ""

    def feed(self, piece: str) -> tuple[str, str | None]:
        """Take the next piece; return the text that is safe to send, and the stop string that ended it, if one did."""
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self._held = ""
            end, start = min(found)
            return text[:start], text[start:end]
        keep = self._length_to_hold(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """At the end: the text that was held back and has not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _length_to_hold(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
