"""Puts the HTTP application together from its parts; everything is handed in, nothing is global."""

from fastapi import FastAPI

from . import errors
from .drain import Drain, DrainGuard
from .engine_client import EngineClient
from .handlers.background import ResponseRuns
from .handlers.services import Services
from .keys.doorkeeper import anybody
from .keys.gate import Gate, Identify
from .limits.gate import LimitsGate
from .limits.meter import Meter
from .metrics import Metrics
from .routes.anthropic import anthropic_router
from .routes.chat import chat_router
from .routes.completions import completions_router
from .routes.conversations import conversations_router
from .routes.embeddings import embeddings_router
from .routes.envelope import Envelope
from .routes.lmstudio import lmstudio_router
from .routes.lmstudio_v0 import lmstudio_v0_router
from .routes.models import models_router
from .routes.needs import RouteNeeds
from .routes.openapi import DOCS_ASSETS, docs_assets, openapi_router
from .routes.operation import declared
from .routes.rerank import rerank_router
from .routes.responses import responses_router
from .routes.status import status_router
from .routes.stored_chat import stored_chat_router
from .routes.stored_responses import stored_responses_router
from .routes.tokenize import tokenize_router
from .shelf.downloads import Downloads
from .shelf.lifecycle import Lifecycle
from .shelf.registry import Registry
from .text.threads import TextThreads

MAX_BODY_BYTES = 32 * 2**20


def create_app(
    engine: EngineClient,
    registry: Registry,
    lifecycle: Lifecycle,
    *,
    runs: ResponseRuns,
    downloads: Downloads,
    meter: Meter,
    identify: Identify = anybody,
    drain: Drain | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    counts_steps: bool = True,
) -> FastAPI:
    """The application, with its `Services` as `state.services`.

    Args:
        engine: started, or about to be; its `on_step` is taken for the metrics.
        registry: the models there are.
        lifecycle: loads and unloads them.
        runs: makes responses, and has the store of what outlives requests; its maker closes both.
        downloads: fetches models; its maker closes it.
        meter: keeps the limits of keys; its `on_refusal` is taken, and its maker closes it.
        identify: tells who sends a request.
        drain: counts work, and refuses it when the process is to end; None: it never is.
        max_body_bytes: larger request bodies are answered 413.
        counts_steps: see Metrics.
    """
    app = FastAPI(title="Penstock", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    services = Services(
        engine,
        registry,
        lifecycle,
        Metrics(engine, counts_steps=counts_steps),
        runs.store,
        runs,
        downloads,
        drain or Drain(),
        meter,
        TextThreads(),
    )
    app.state.services = services
    routers = [
        anthropic_router(services, max_body_bytes=max_body_bytes),
        chat_router(services, max_body_bytes=max_body_bytes),
        completions_router(services, max_body_bytes=max_body_bytes),
        conversations_router(services, max_body_bytes=max_body_bytes),
        embeddings_router(services, max_body_bytes=max_body_bytes),
        rerank_router(services, max_body_bytes=max_body_bytes),
        tokenize_router(services, max_body_bytes=max_body_bytes),
        lmstudio_router(services, max_body_bytes=max_body_bytes),
        lmstudio_v0_router(services, max_body_bytes=max_body_bytes),
        models_router(services),
        responses_router(services, max_body_bytes=max_body_bytes),
        stored_chat_router(services, max_body_bytes=max_body_bytes),
        stored_responses_router(services),
        status_router(services),
    ]
    routers.append(openapi_router(routers))
    for router in routers:
        app.include_router(router)
    app.mount(DOCS_ASSETS, docs_assets())
    errors.install(app)
    meter.on_refusal = services.metrics.count_refusal
    limited = [route.path for route, operation in declared(routers) if operation.is_limited]
    app.add_middleware(LimitsGate, meter=meter, paths=limited)
    app.add_middleware(DrainGuard, drain=services.drain)
    count_refusal = services.metrics.count_refusal
    app.add_middleware(Gate, identify=identify, needed=RouteNeeds(routers).of, on_refusal=count_refusal)
    app.add_middleware(Envelope, metrics=services.metrics)
    return app
