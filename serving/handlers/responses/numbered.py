"""Numbers the events of one stream."""

from collections.abc import Mapping
from typing import Any

Event = dict[str, Any]
"""An event as JSON, its `type` and `sequence_number` in it."""


class Numbers:
    """Gives each event the next sequence number, from 0."""

    def __init__(self) -> None:
        self._next = 0

    def event(self, kind: str, fields: Mapping[str, Any]) -> Event:
        """An event of a type, such as `response.created`."""
        event = {"type": kind, "sequence_number": self._next, **fields}
        self._next += 1
        return event
