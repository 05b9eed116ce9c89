"""How the device worker is, for probes: read from the record that it keeps of itself."""

import time
from contextlib import suppress
from pathlib import Path

from penstock.scheduler.flight_record import FlightRecord

from .engine_client import EngineClient


class WorkerHealth:
    """The worker of the moment, looked at from outside.

    Args:
        engine: knows it.
    """

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._path = ""
        self._record: FlightRecord | None = None

    def describe(self) -> dict[str, object]:
        """Its status, how many were before it, and the seconds since it last got on; null: it has not begun yet."""
        engine = self._engine
        restarts = engine.worker.generation
        if engine.lost is not None:
            return {"status": "restarting", "restarts": restarts + 1, "seconds_since_progress": None}
        status = "up" if engine.ready.is_set() else "restarting" if restarts else "starting"
        return {"status": status, "restarts": restarts, "seconds_since_progress": self._seconds_since_progress()}

    def obstacle(self) -> str:
        """Why it cannot serve now; "": it can."""
        engine = self._engine
        if engine.death is not None:
            return f"the device worker is gone ({engine.death})"
        if engine.lost is not None:
            return f"the device worker {engine.lost.how}, and another one starts"
        return "" if engine.ready.is_set() else "models are being loaded"

    def _seconds_since_progress(self) -> float | None:
        path = self._engine.worker.flight_record
        if path != self._path:
            if self._record is not None:
                self._record.close()
            self._path, self._record = path, None
        if self._record is None and path and Path(path).exists():
            with suppress(OSError):  # the server ends just now
                self._record = FlightRecord(Path(path))
        flight = self._record.read() if self._record is not None else None
        if flight is None or not flight.num_beats:
            return None
        return round(max(0.0, time.monotonic() - flight.last_beat), 3)
