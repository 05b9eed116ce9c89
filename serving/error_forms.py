"""How an error is written: OpenAI's form, Anthropic's or LM Studio's, by what the client has called."""

from typing import Literal, Protocol

import orjson
from starlette.datastructures import Headers
from starlette.types import Scope

from .protocol.anthropic.models import VERSION_HEADER

REQUEST_ID = "request_id"
"""Key in a scope's state: the exchange's id."""

Limited = Literal["requests", "tokens"]
"""What a limit counts."""


class ClientError(Protocol):
    """What an error says to a client; see `errors.ApiError`."""

    message: str
    status: int
    code: str | None
    param: str | None
    tokens: tuple[int, int] | None
    limited: Limited | None


class ErrorForm(Protocol):
    """One protocol's way to write an error."""

    def body(self, error: ClientError, scope: Scope) -> bytes:
        """The JSON body of an error answer."""
        ...

    def event(self, error: ClientError, scope: Scope) -> bytes:
        """The last event of a stream that fails."""
        ...


class OpenAIForm:
    """`{"error": {"message", "type", "param", "code"}}`."""

    def body(self, error: ClientError, scope: Scope) -> bytes:
        """The JSON body of an error answer."""
        kind: str = "server_error" if error.status >= 500 else "invalid_request_error"
        if error.status == 429:
            kind = error.limited or "requests"
        details = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
        return orjson.dumps({"error": details})

    def event(self, error: ClientError, scope: Scope) -> bytes:
        """The last event of a stream that fails."""
        return b"data: " + self.body(error, scope) + b"\n\n"


class AnthropicForm:
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`; the message names the field."""

    _TYPES = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }

    def body(self, error: ClientError, scope: Scope) -> bytes:
        """The JSON body of an error answer."""
        kind = self._TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        message = error.message
        if error.tokens is not None:  # by these words Claude Code knows that it must compact, and how much
            message = f"prompt is too long: {error.tokens[0]} tokens > {error.tokens[1]} maximum. {message}"
        request_id = scope.get("state", {}).get(REQUEST_ID)
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id})

    def event(self, error: ClientError, scope: Scope) -> bytes:
        """The last event of a stream that fails."""
        return b"event: error\ndata: " + self.body(error, scope) + b"\n\n"


class LMStudioForm:
    """`{"error": {"type", "message", "code", "param"}}`, with LM Studio's own types."""

    _TYPES = {
        "model_not_found": "model_not_found",
        "job_not_found": "job_not_found",
        "not_implemented": "not_implemented",
        "rate_limit_exceeded": "rate_limit_exceeded",
    }

    def body(self, error: ClientError, scope: Scope) -> bytes:
        """The JSON body of an error answer."""
        return orjson.dumps({"error": self.details(error)})

    def event(self, error: ClientError, scope: Scope) -> bytes:
        """The last event of a stream that fails."""
        return b"event: error\ndata: " + orjson.dumps({"type": "error", "error": self.details(error)}) + b"\n\n"

    def details(self, error: ClientError) -> dict[str, str]:
        """The error object, without the fields that it has no value for."""
        usual = "internal_error" if error.status >= 500 else "invalid_request"
        details = {"type": self._TYPES.get(error.code or "", usual), "message": error.message}
        if error.code is not None:
            details["code"] = error.code
        if error.param is not None:
            details["param"] = error.param
        return details


OPENAI = OpenAIForm()
ANTHROPIC = AnthropicForm()
LM_STUDIO = LMStudioForm()


def form_of(scope: Scope) -> ErrorForm:
    """The form of the protocol that an exchange speaks."""
    path: str = scope["path"]
    if path.startswith("/api/v1/"):
        return LM_STUDIO
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return ANTHROPIC
    if path.startswith("/v1/models") and VERSION_HEADER in Headers(scope=scope):
        return ANTHROPIC
    return OPENAI
