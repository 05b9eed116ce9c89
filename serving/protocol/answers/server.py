"""The answers of the routes about models and about the server itself."""

from typing import Any, Literal

from .common import Answer


class Model(Answer):
    """One model; what follows `owned_by` is not OpenAI's."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    """The model's own id, where `id` is an alias."""
    type: Literal["llm", "vlm", "embeddings", "reranker"]
    state: Literal["loaded", "loading", "not-loaded"]
    max_model_len: int | None
    architecture: str
    publisher: str
    quantization: str
    num_parameters: int | None
    size_bytes: int
    requests_in_flight: int = 0
    """This and what follows: of loaded models."""
    ttl: float | None = None
    """Seconds that it stays after its last use; null: until it is unloaded."""
    ttl_left: float | None = None
    load_time_seconds: float = 0.0
    memory_bytes: int = 0


class Models(Answer):
    """All models."""

    object: Literal["list"]
    data: list[Model]
    models: list[dict[str, Any]]
    """The same for Codex, in the form of its model catalogue."""


class Root(Answer):
    """Where to go on."""

    name: Literal["penstock"]
    models: str
    health: str
    metrics: str
    docs: str


class Worker(Answer):
    """The device worker."""

    status: Literal["up", "starting", "restarting"]
    restarts: int
    """Since the server's start."""
    seconds_since_progress: float | None
    """A worker without work shows every second that it lives; null: it is still starting."""


class Health(Answer):
    """How the server is."""

    status: Literal["ok", "loading"]
    worker: Worker
    models: list[str] = []
    """Those in memory. This and what follows: for whoever has a key, where there are keys."""
    failed: dict[str, str] = {}
    """Why models cannot be served, by id."""


class DeadWorker(Answer):
    """The server cannot serve."""

    status: Literal["dead"]
    reason: str


class Readiness(Answer):
    """Requests are served."""

    status: Literal["ready"]


class NotReady(Answer):
    """Requests would wait, or be refused."""

    status: Literal["not_ready"]
    reason: str
