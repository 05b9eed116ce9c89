"""What every HTTP exchange passes: a request id on the answer, a count of it, and an answer even to our own faults."""

import logging
import re
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from ..error_forms import REQUEST_ID
from ..errors import translate
from ..metrics import Metrics
from ..sse import RAW_SEND

_log = logging.getLogger(__name__)
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
CLIENT_GONE = 499
"""nginx's status for a client that left before its answer; only the metrics see it."""


class Envelope:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        metrics: counts answers by route and status; what is no route counts as "other".
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One exchange."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = Headers(scope=scope).get("x-request-id", "")
        request_id = wanted if _SANE_ID.fullmatch(wanted) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})[REQUEST_ID] = request_id
        scope["state"][RAW_SEND] = send
        status = 0

        async def send_marked(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers.append("x-request-id", request_id)
                headers.append("request-id", request_id)  # Anthropic's name of it
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            status = CLIENT_GONE
        except Exception as error:
            _log.exception("internal error at %s %s, x-request-id %s", scope["method"], scope["path"], request_id)
            if status:  # too late for an answer: the server closes the connection, so that the client sees a cut
                raise
            await translate(error).response(scope)(scope, receive, send_marked)
        finally:
            self._metrics.count_answer(_route(scope), status or CLIENT_GONE)


def _route(scope: Scope) -> str:
    """The path with its parameters' names in place of their values, so that there are few of them."""
    return getattr(scope.get("route"), "path", "other")  # FastAPI notes there which route it chose
