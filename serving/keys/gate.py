"""The gate that every request passes: it finds out who asks, before anything else looks at the request."""

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..principal import EVERYBODY, PRINCIPAL, Principal
from .presented import digest, id_of, key_in

Identify = Callable[[Headers], Principal]
"""Tells by a request's headers who sends it."""


def anybody(headers: Headers) -> Principal:
    """Lets everybody in: keys only tell apart who asks. Clients that need no key send an empty one or none."""
    key = key_in(headers)
    return Principal(id_of(digest(key))) if key else EVERYBODY


class Gate:
    """ASGI middleware around the routes.

    Args:
        app: what is behind the gate.
        identify: tells who asks.
    """

    def __init__(self, app: ASGIApp, identify: Identify) -> None:
        self._app = app
        self._identify = identify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One exchange."""
        if scope["type"] == "http":
            scope.setdefault("state", {})[PRINCIPAL] = self._identify(Headers(scope=scope))
        await self._app(scope, receive, send)
