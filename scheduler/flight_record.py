"""What the device worker is doing, in a small file that outlives it: which jobs its step holds, and that it gets on.

The worker writes before each step and after it, a few microseconds each; whoever started it reads the file after its
death, to know which jobs may be at fault, and while it lives, to see whether it still gets on. Needs only the standard
library.

The file is a header and two slots of job ids. A step is written into the slot that the last one does not use, and its
number into the header only then: with two steps in flight both slots hold one, and a death in the midst of writing
leaves the step that was not launched out.
"""

import mmap
import os
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct("<QQQd")
"""Signs of progress, steps launched, steps collected, time of the last sign (`time.monotonic()`, which all processes of
a machine share)."""
_LENGTH = struct.Struct("<I")
_NOTE_BYTES = 32 << 10
_SLOT_BYTES = 128 << 10
"""Room for the ids of some thousand jobs; of more, the rest is left out."""
_FIRST_NOTE = _HEADER.size
_LOADING, _ADMITTED = _FIRST_NOTE, _FIRST_NOTE + _NOTE_BYTES
_SLOTS = _FIRST_NOTE + 2 * _NOTE_BYTES
_FILE_BYTES = _SLOTS + 2 * _SLOT_BYTES


@dataclass(frozen=True, slots=True)
class Flight:
    """What a worker was doing when its record was read."""

    num_beats: int
    """Signs of progress since its start; 0: it is still importing its libraries."""
    last_beat: float
    """When the last one came, by `time.monotonic()`."""
    num_steps: int
    """Launched since the start."""
    job_ids: frozenset[str]
    """Jobs in steps that were launched and not collected."""
    admitted_ids: frozenset[str]
    """Jobs that were being taken in, their grammars compiled for example."""
    loading: str
    """The model that was being loaded; "": none."""


class FlightRecord:
    """The file, as the worker writes it and others read it. Making one makes the file, if there is none.

    Args:
        path: the file; None: nobody reads it.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, path: Path | None) -> None:
        self._map = _map(path) if path is not None else mmap.mmap(-1, _FILE_BYTES)
        self._num_beats, self._num_launched, self._num_collected, self._last_beat = _HEADER.unpack_from(self._map)

    # ---------------------------------------------------------------------------------------------------- the worker

    def begin_step(self, job_ids: Iterable[str], num_in_flight: int = 0) -> None:
        """A step with these jobs is about to be launched, while so many before it are not collected yet.

        The engine collects everything before a step that holds a single suspect: nobody but that one is to be blamed.
        """
        self._num_collected = self._num_launched - num_in_flight
        slot = _SLOTS + _SLOT_BYTES * ((self._num_launched + 1) % 2)
        self._write(slot, _SLOT_BYTES, job_ids)
        self._num_launched += 1
        self._write_header()

    def end_step(self, num_in_flight: int) -> None:
        """The engine has gone on; so many launched steps are not collected yet."""
        self._num_collected = self._num_launched - num_in_flight
        self._write_header()

    def beat(self) -> None:
        """The worker gets on."""
        self._num_beats += 1
        self._last_beat = time.monotonic()
        self._write_header()

    def note_admitted(self, job_ids: Iterable[str]) -> None:
        """These jobs are being taken in."""
        self._write(_ADMITTED, _NOTE_BYTES, job_ids)

    def note_loading(self, model: str) -> None:
        """This model is being loaded; "": none."""
        self._write(_LOADING, _NOTE_BYTES, [model] if model else [])

    def _write_header(self) -> None:
        _HEADER.pack_into(self._map, 0, self._num_beats, self._num_launched, self._num_collected, self._last_beat)

    def _write(self, start: int, num_bytes: int, ids: Iterable[str]) -> None:
        data = "\n".join(ids).encode()
        if len(data) > num_bytes - _LENGTH.size:  # whole ids only
            data = data[: data.rfind(b"\n", 0, num_bytes - _LENGTH.size)]
        first = start + _LENGTH.size
        self._map[first : first + len(data)] = data
        _LENGTH.pack_into(self._map, start, len(data))

    # --------------------------------------------------------------------------------------------------- its readers

    def read(self) -> Flight:
        """What the worker is doing, or was when it died."""
        num_beats, num_launched, num_collected, last_beat = _HEADER.unpack_from(self._map)
        job_ids: set[str] = set()
        for number in range(max(num_collected, num_launched - 2) + 1, num_launched + 1):
            job_ids |= self._read(_SLOTS + _SLOT_BYTES * (number % 2))
        (loading,) = self._read(_LOADING) or {""}
        return Flight(num_beats, last_beat, num_launched, frozenset(job_ids), self._read(_ADMITTED), loading)

    def _read(self, start: int) -> frozenset[str]:
        (num_bytes,) = _LENGTH.unpack_from(self._map, start)
        first = start + _LENGTH.size
        text = self._map[first : first + num_bytes].decode(errors="replace")  # it may be written just now
        return frozenset(text.split("\n")) if text else frozenset()

    def close(self) -> None:
        """Let the file go; it stays."""
        self._map.close()


def _map(path: Path) -> mmap.mmap:
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        if os.fstat(file.fileno()).st_size < _FILE_BYTES:
            file.write(bytes(_FILE_BYTES))  # a hole could not be filled once the disk is full, which ends the process
            file.flush()
        return mmap.mmap(file.fileno(), _FILE_BYTES)
