"""The one place where errors become HTTP answers: their status, their headers and, by `error_forms`, their body.

Everything else raises typed errors and knows nothing of bodies. Bad requests are 400, never 422, which many clients
retry.
"""

import math
from collections.abc import Iterable, Mapping
from http import HTTPStatus

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from penstock.scheduler.config import ModelKind
from penstock.scheduler.errors import EngineDeadError, RequestError
from penstock.scheduler.messages import JobError, ModelLoading

from .error_forms import Limited, form_of
from .protocol.explain import explain

RETRY_AFTER_SECONDS = 5
"""What a 503 asks clients to wait: about the time a worker takes to come back with a small model."""

ENDPOINTS: Mapping[ModelKind, str] = {
    "generate": "/v1/chat/completions or /v1/completions",
    "embed": "/v1/embeddings, /v1/rerank or /v1/score",
    "score": "/v1/rerank or /v1/score",
}
_DOES: Mapping[ModelKind, str] = {
    "generate": "generates text",
    "embed": "makes embeddings",
    "score": "scores pairs of texts",
}


class ApiError(Exception):
    """An error that a client is told about.

    Args:
        message: what is wrong, with the value, the limit and the remedy.
        status: HTTP status.
        code: OpenAI's machine-readable code.
        param: dotted path of the request field at fault, if there is one.
        tokens: of an input that is too long: how many it has at least, and how many it may have.
        retry_after: seconds after which it may be tried again.
        limited: of a limit that was reached: what it counts, "requests" or "tokens".
        headers: extra response headers.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        tokens: tuple[int, int] | None = None,
        retry_after: float | None = None,
        limited: Limited | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.tokens = tokens
        self.limited = limited
        self.headers = dict(headers or {})
        if retry_after is not None:
            # Whole seconds are the standard; clients of OpenAI and Anthropic look for milliseconds first.
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after)))
            self.headers["retry-after-ms"] = str(math.ceil(retry_after * 1000))
        elif status == 503:
            self.headers.setdefault("retry-after", str(RETRY_AFTER_SECONDS))

    def response(self, scope: Scope) -> Response:
        """The whole answer to the exchange of `scope`, in the form of its protocol."""
        return Response(form_of(scope).body(self, scope), self.status, self.headers, "application/json")


class JobFailedError(Exception):
    """The worker ended a job without its result."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


def model_not_found(name: str, served: Iterable[str], reason: str = "") -> ApiError:
    """404 for a model that is not served here, with the ones that are; `reason` says why it could not be loaded."""
    ids = ", ".join(served) or "none"
    why = f", since it could not be loaded: {reason.rstrip('.')}" if reason else ""
    return ApiError(
        f"The model '{name:.200}' is not served here{why}. Served models: {ids}.",
        status=404,
        code="model_not_found",
        param="model",
    )


def model_loading(name: str, progress: ModelLoading | None) -> ApiError:
    """503 for a model whose loading takes longer than a request waits."""
    stage = f" ({progress.stage}, {progress.fraction:.0%})" if progress else ""
    return ApiError(f"The model '{name}' is still loading{stage}. Try again soon.", status=503, code="model_loading")


def model_not_loaded(name: str, resident: Iterable[str]) -> ApiError:
    """404 for a model that is here, but not in memory, where requests do not load models."""
    ids = ", ".join(resident) or "none"
    return ApiError(
        f"The model '{name}' is not loaded. Load it with `penstock load {name}`. Loaded models: {ids}.",
        status=404,
        code="model_not_found",
        param="model",
    )


def no_room_for_model(name: str, reason: str, holders: Iterable[str]) -> ApiError:
    """503 for a model that does not fit beside the resident ones, none of which may be unloaded now."""
    return ApiError(
        f"There is no room for the model '{name}' now: {reason.rstrip('.')}. In memory are: "
        f"{', '.join(holders) or 'none'}. Try again when they are idle, or unload one with `penstock unload`.",
        status=503,
        code="out_of_memory",
        param="model",
    )


def model_busy(name: str, num_jobs: int) -> ApiError:
    """409 for a model that cannot be unloaded."""
    whose = f"{num_jobs} requests" if num_jobs else "requests of another process"
    return ApiError(
        f"The model '{name}' cannot be unloaded: it has {whose} in flight. Try again when they are done.",
        status=409,
        code="model_busy",
        param="model",
    )


def wrong_kind(name: str, kind: ModelKind, others: Iterable[str]) -> ApiError:
    """400 for a generation request to an embedding model, say; `others` would have been right."""
    fitting = ", ".join(others) or "none"
    return ApiError(
        f"The model '{name}' {_DOES[kind]}: use it with {ENDPOINTS[kind]}. Models for this endpoint: {fitting}.",
        code="model_not_supported",
        param="model",
    )


def context_length_exceeded(num_tokens: int, limit: int, what: str, *, param: str) -> ApiError:
    """400 for an input that is too long; `what` says whose limit it is, `num_tokens` how long it is at least."""
    return ApiError(
        f"The input has at least {num_tokens} tokens, but {what} takes at most {limit}. Shorten the input.",
        code="context_length_exceeded",
        param=param,
        tokens=(num_tokens, limit),
    )


def translate(error: Exception) -> ApiError:
    """The client's view of any error; what is not foreseen is a 500 that gives nothing away."""
    match error:
        case ApiError():
            return error
        case ValidationError():
            problem = explain(error)
            return ApiError(problem.message, code=problem.code, param=problem.param)
        case JobFailedError(error=job):
            # OpenAI's clients would send again what would take too long again.
            headers = {"x-should-retry": "false"} if job.status == 504 else None
            return ApiError(
                job.message,
                status=job.status,
                code=job.code,
                param=job.param,
                retry_after=job.retry_after,
                headers=headers,
            )
        case RequestError():
            return ApiError(
                error.message, status=error.status, code=error.code, param=error.param, retry_after=error.retry_after
            )
        case EngineDeadError():
            return ApiError(str(error), status=503, code="engine_dead")
        case HTTPException():
            return _of_http_exception(error)
        case _:
            return ApiError(
                "The server had an internal error. The log names it under this answer's x-request-id.",
                status=500,
                code="internal_error",
            )


def _of_http_exception(error: HTTPException) -> ApiError:
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    detail = error.detail or HTTPStatus(error.status_code).phrase
    return ApiError(detail, status=error.status_code, code=code, headers=error.headers)


FORESEEN = (ApiError, ValidationError, JobFailedError, RequestError, EngineDeadError, HTTPException)
"""All other errors are faults of ours, to be logged."""


async def _answer(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        path = f"{request.method} {request.url.path}"
        allowed = (error.headers or {}).get("Allow")
        remedy = f"Use {allowed}." if allowed else "The API lives under /v1, for example POST /v1/chat/completions."
        error = HTTPException(error.status_code, f"Unknown request URL: {path}. {remedy}", error.headers)
    return translate(error).response(request.scope)


def install(app: FastAPI) -> None:
    """Make `app` answer every foreseen error in the form of the protocol that was asked."""
    for kind in FORESEEN:
        app.add_exception_handler(kind, _answer)
