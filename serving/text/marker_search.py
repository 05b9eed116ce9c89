"""Finds markers in a growing text, holding back only what may become one."""

from collections.abc import Sequence


class MarkerSearch:
    """Looks for the first of several markers.

    Args:
        markers: none is the beginning of another.
    """

    def __init__(self, markers: Sequence[str]) -> None:
        self._markers = tuple(markers)
        self._longest = max(map(len, self._markers))
        self._first_characters = frozenset(marker[0] for marker in self._markers)
        self.held = ""
        """Text taken, not given out yet: the beginning of a marker, maybe."""

    def feed(self, text: str) -> tuple[str, str | None, str]:
        """Take more text.

        Returns:
            The text up to the first marker, that marker, and what follows it; or what cannot belong to a marker, None
            and "".
        """
        text = self.held + text
        self.held = ""
        found = [(at, marker) for marker in self._markers if (at := text.find(marker)) >= 0]
        if found:
            at, marker = min(found)
            return text[:at], marker, text[at + len(marker) :]
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[at] in self._first_characters and any(marker.startswith(text[at:]) for marker in self._markers):
                self.held = text[at:]
                return text[:at], None, ""
        return text, None, ""

    def flush(self) -> str:
        """At the end: what was held back and has not become a marker."""
        held, self.held = self.held, ""
        return held
