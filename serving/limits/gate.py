"""Lets a key's requests to models through as long as its limits allow, and tells on every answer how it stands."""

from collections.abc import Collection, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..error_forms import ANTHROPIC, form_of
from ..errors import ApiError
from ..principal import principal_of
from .headers import limit_headers
from .meter import Meter, Visit

_VISIT = "visit"
"""Key in a scope's state."""


class LimitsGate:
    """ASGI middleware behind the gate that finds out who asks.

    Args:
        app: what is behind it.
        meter: counts.
        paths: to which a POST calls a model; all other requests pass.
    """

    def __init__(self, app: ASGIApp, meter: Meter, paths: Collection[str]) -> None:
        self._app = app
        self._meter = meter
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One exchange."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self._paths:
            await self._app(scope, receive, send)
            return
        principal = principal_of(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start" and (standing := self._meter.standing(principal)):
                anthropic = form_of(scope) is ANTHROPIC
                message["headers"] = [*message["headers"], *limit_headers(standing, anthropic=anthropic)]
            await send(message)

        try:
            visit = await self._meter.enter(principal)
        except ApiError as error:
            await error.response(scope)(scope, receive, send_with_headers)
            return
        if visit is None:
            await self._app(scope, receive, send_with_headers)
            return
        scope["state"][_VISIT] = visit
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            visit.release()


def visit_of(exchange: Mapping[str, Any]) -> Visit | None:
    """The place in flight that a request holds, given the request or its ASGI scope; None: nobody counts it."""
    visit: Visit | None = exchange["state"].get(_VISIT)
    return visit
