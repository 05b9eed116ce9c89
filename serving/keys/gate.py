"""The gate that every request passes: it finds out who asks and whether they may, before anything else looks at it."""

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import ApiError
from ..principal import PRINCIPAL, STRANGER, Need, Principal
from .refusals import Refusals

FORBIDDEN = 403
NOT_FOUND = 404
Identify = Callable[[Headers], Principal]
"""Tells by a request's headers who sends it; raises ApiError if they may not come in."""
Needed = Callable[[str, str], Need]
"""Tells what a request needs, by its method and path."""


class Gate:
    """ASGI middleware around the routes.

    Args:
        app: what is behind the gate.
        identify: tells who asks.
        needed: tells what they must be allowed to.
        on_refusal: hears the code of each refusal.
    """

    def __init__(self, app: ASGIApp, identify: Identify, needed: Needed, on_refusal: Callable[[str], None]) -> None:
        self._app = app
        self._identify = identify
        self._needed = needed
        self._on_refusal = on_refusal
        self._refusals = Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One exchange."""
        if scope["type"] == "http":
            try:
                scope.setdefault("state", {})[PRINCIPAL] = self._admit(scope)
            except ApiError as error:
                self._refusals.log(scope, error)
                self._on_refusal(error.code or "")
                await error.response(scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> Principal:
        need = self._needed(scope["method"], scope["path"])
        try:
            principal = self._identify(Headers(scope=scope))
        except ApiError:
            if need == "nothing":
                return STRANGER
            raise
        if "\n" in scope["path"]:
            # A router takes "/a\n" for "/a": the $ of its patterns stands before a last line's end too. Nothing that
            # goes by the path, what it needs and whether it is limited, would know that it is that route.
            raise _no_such_path(scope)
        if need not in ("key", "nothing") and need not in principal.scopes:
            raise _forbidden(need, scope, principal)
        return principal


def _no_such_path(scope: Scope) -> ApiError:
    return ApiError(
        f"Unknown request URL: {scope['method']} {scope['path'][:200]!r}. No path here has a line's end in it.",
        status=NOT_FOUND,
        code="unknown_url",
    )


def _forbidden(need: Need, scope: Scope, principal: Principal) -> ApiError:
    return ApiError(
        f"{scope['method']} {scope['path'][:200]} needs the scope '{need}', and this API key has "
        f"{', '.join(sorted(principal.scopes))}. The server's operator makes a key that has it with "
        f"`penstock keys add NAME --scope {need}`.",
        status=FORBIDDEN,
        code="insufficient_permissions",
        headers={"www-authenticate": f'Bearer realm="penstock", error="insufficient_scope", scope="{need}"'},
    )
