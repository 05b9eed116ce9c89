"""What the first API process tells itself and the others of the device worker's lives: one line of JSON each."""

import msgspec


class WorkerStarted(msgspec.Struct, frozen=True, tag=True):
    """There is a worker; it may take seconds until it listens."""

    generation: int
    """0 for the server's first worker, one more for each that takes the place of another."""
    address: str
    """ZeroMQ address that it binds."""
    flight_record: str = ""
    """The file in which it says what it is doing; "": nowhere."""


class WorkerLost(msgspec.Struct, frozen=True, tag=True):
    """The worker is gone, and another one follows."""

    how: str
    """How it ended: "was killed by signal 9"."""
    suspects: frozenset[str] = frozenset()
    """Jobs that it was computing or taking in."""
    was_loading: bool = False
    """A model was being loaded too, which may be what ended it."""
    failed_models: dict[str, str] = {}
    """Models that are not loaded again, and why."""
    is_hopeless: bool = False
    """The last ones did not even get ready: nobody should wait for the next."""


WorkerNews = WorkerStarted | WorkerLost

_decoder = msgspec.json.Decoder(WorkerNews)


def line_of(news: WorkerNews) -> bytes:
    """The news as a line."""
    return msgspec.json.encode(news) + b"\n"


def news_of(line: bytes) -> WorkerNews:
    """Inverse of `line_of`."""
    news: WorkerNews = _decoder.decode(line)
    return news
