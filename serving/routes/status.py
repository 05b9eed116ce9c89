"""The routes for people, probes and monitoring: /, /health, /ready and /metrics."""

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..errors import RETRY_AFTER_SECONDS
from ..handlers.services import Services
from ..principal import principal_of
from ..protocol.answers.server import DeadWorker, Health, NotReady, Readiness, Root
from ..worker_health import WorkerHealth
from .operation import documented

_READ = ["GET", "HEAD"]


def status_router(services: Services) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter()
    engine = services.engine
    worker = WorkerHealth(engine)

    @router.api_route("/", methods=_READ, **documented("Where to go on", tag="Server", needs="key", answer=Root))
    async def root() -> dict[str, object]:
        return {
            "name": "penstock",
            "models": "/v1/models",
            "health": "/health",
            "metrics": "/metrics",
            "docs": "/docs",
        }

    @router.api_route(
        "/health",
        methods=_READ,
        **documented("How the server is", tag="Server", needs="nothing", answer=Health, unavailable=DeadWorker),
    )
    async def health(request: Request) -> Response:
        """200 while the server lives, also when a worker is loading or restarting; 503 once restarts are of no use.

        Strangers learn no names.
        """
        if engine.death is not None:
            state: dict[str, object] = {"status": "dead", "reason": engine.death}
            headers = {"retry-after": str(RETRY_AFTER_SECONDS)}
            return Response(orjson.dumps(state), 503, headers, "application/json")
        state = {"status": "ok" if engine.ready.is_set() else "loading", "worker": worker.describe()}
        if principal_of(request).scopes:
            state |= {"models": sorted(engine.models), "failed": services.failures()}
        return Response(orjson.dumps(state), media_type="application/json")

    @router.api_route(
        "/ready",
        methods=_READ,
        **documented(
            "Whether requests are served", tag="Server", needs="nothing", answer=Readiness, unavailable=NotReady
        ),
    )
    async def ready() -> Response:
        """200 while a worker has its models and the server takes new work; 503 with the reason otherwise."""
        reason = "the server is shutting down" if services.drain.begun else worker.obstacle()
        if reason:
            headers = {"retry-after": str(RETRY_AFTER_SECONDS)}
            return Response(orjson.dumps({"status": "not_ready", "reason": reason}), 503, headers, "application/json")
        return Response(orjson.dumps({"status": "ready"}), media_type="application/json")

    @router.api_route(
        "/metrics",
        methods=_READ,
        **documented("Prometheus metrics", tag="Server", needs="admin", media_type="text/plain"),
    )
    async def metrics() -> Response:
        return Response(services.metrics.exposition(), media_type=services.metrics.content_type)

    return router
