"""The routes for people, probes and monitoring: /, /health and /metrics."""

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..errors import RETRY_AFTER_SECONDS
from ..handlers.services import Services
from ..principal import principal_of
from ..protocol.answers.server import DeadWorker, Health, Root
from .operation import documented

_READ = ["GET", "HEAD"]


def status_router(services: Services) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter()
    engine = services.engine

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
        """200 while the worker lives, even when it is still loading; 503 once it is gone. Strangers learn no names."""
        if engine.death is not None:
            state: dict[str, object] = {"status": "dead", "reason": engine.death}
            headers = {"retry-after": str(RETRY_AFTER_SECONDS)}
            return Response(orjson.dumps(state), 503, headers, "application/json")
        state = {"status": "ok" if engine.ready.is_set() else "loading"}
        if principal_of(request).scopes:
            state |= {"models": sorted(engine.models), "failed": services.failures()}
        return Response(orjson.dumps(state), media_type="application/json")

    @router.api_route(
        "/metrics",
        methods=_READ,
        **documented("Prometheus metrics", tag="Server", needs="admin", media_type="text/plain"),
    )
    async def metrics() -> Response:
        return Response(services.metrics.exposition(), media_type=services.metrics.content_type)

    return router
