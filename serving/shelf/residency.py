"""The terms on which models are in memory: what may be loaded, how long each stays, and how that is shown."""

from dataclasses import dataclass

from penstock.scheduler.messages import ModelReady


@dataclass(frozen=True, slots=True)
class LoadingPolicy:
    """What may be loaded, and for how long it stays."""

    just_in_time: bool = True
    """Requests load models."""
    idle_ttl: float = 3600.0
    """Seconds that a model loaded by a request stays idle, if the request does not say; 0: for good."""
    max_resident_models: int = 0
    """Models in memory at once; 0: as many as fit."""


@dataclass(slots=True)
class Stay:
    """The terms on which a model is resident."""

    ttl: float | None
    """Seconds of idleness after which it goes; None: it stays."""
    evictable: bool
    """Another model may take its room."""
    last_used: float
    """On the lifecycle's clock."""
    expected_until: float = 0.0
    """Until then a job is expected that is not there yet."""
    load_seconds: float = 0.0
    """How long loading took."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in memory, as `penstock ps` shows it."""

    ready: ModelReady
    num_jobs: int
    ttl: float | None
    """Seconds of idleness that it is granted; None: it stays."""
    seconds_left: float | None
    """Of them, from now."""
    load_seconds: float
