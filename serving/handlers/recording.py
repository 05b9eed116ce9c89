"""The events of one response as they come, kept so that any number of readers can follow from any of them."""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import orjson

_DATA = b"\ndata: "


class Recording:
    """Encoded events in their order; readers that have seen all wait for the next one.

    Args:
        forgets: events are dropped when they are read; there is one reader then, who reads from the beginning.
        first_number: the least sequence number.
    """

    def __init__(self, *, forgets: bool = False, first_number: int = 0) -> None:
        self._forgets = forgets
        self._frames: list[bytes] = []
        self._numbers: list[int] = []
        self._last_number = first_number - 1
        self._ended = False
        self._failure: Exception | None = None
        self._news = asyncio.Event()

    @classmethod
    def of(cls, events: Iterable[bytes]) -> "Recording":
        """A finished recording of encoded events."""
        recording = cls()
        for encoded in events:
            recording._append(orjson.loads(encoded), encoded)
        recording.end()
        return recording

    @property
    def num_events(self) -> int:
        """Events that are kept."""
        return len(self._frames)

    @property
    def next_number(self) -> int:
        """The sequence number of an event that would come next."""
        return self._last_number + 1

    def events(self) -> list[bytes]:
        """The JSON of each event."""
        return [frame[frame.index(_DATA) + len(_DATA) : -2] for frame in self._frames]

    def append(self, event: dict[str, Any]) -> None:
        """Add an event; its `sequence_number` is above the one before."""
        self._append(event, orjson.dumps(event))
        self._wake()

    def end(self, failure: Exception | None = None) -> None:
        """There will be no further event; `failure` tells readers why, if that is not the end of the stream."""
        self._ended = True
        self._failure = failure
        self._wake()

    async def follow(self, after: int = -1) -> AsyncGenerator[bytes]:
        """Server-sent events with a sequence number above `after`, those to come included.

        What is there at once comes in one piece, which saves a system call an event for readers that lag behind.
        """
        position = 0
        while True:
            if position < len(self._frames):
                position = bisect_right(self._numbers, after, lo=position)
                piece = b"".join(self._frames[position:])
                position = len(self._frames)
                if self._forgets:
                    self._frames.clear()
                    self._numbers.clear()
                    position = 0
                if piece:
                    yield piece
            elif self._failure is not None:
                raise self._failure
            elif self._ended:
                return
            else:
                await self._news.wait()

    def _append(self, event: dict[str, Any], encoded: bytes) -> None:
        self._last_number = event["sequence_number"]
        self._frames.append(b"".join((b"event: ", event["type"].encode(), _DATA, encoded, b"\n\n")))
        self._numbers.append(self._last_number)

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
