"""Gives requests of a key that are refused together different times to come back: one only could pass at the same."""

MAX_DELAY = 60_000_000
"""Microseconds beyond what one request alone would wait: clients heed no longer times, and some never come back."""


class Turns:
    """The turns that a process has given out."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], int] = {}

    def next(self, principal_id: str, limit: str, now: int, wait: int, spacing: int) -> int:
        """How long a refused request is to wait, behind those that were refused before it.

        Args:
            principal_id: whose it is.
            limit: which one was reached: each has turns of its own.
            now: microseconds of any clock.
            wait: until it would pass if it were alone, in microseconds.
            spacing: between two that pass.
        """
        turn = max(now + wait, min(self._last.get((principal_id, limit), 0) + spacing, now + wait + MAX_DELAY))
        self._last[principal_id, limit] = turn
        return turn - now
