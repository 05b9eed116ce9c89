"""Request bodies in, JSON out: bodies are bounded, strict JSON, an object, validated; every fault is a 400 or a 413."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from ..errors import ApiError
from ..protocol.body import RequestBody
from ..protocol.explain import preview
from .json_size import check_json_size

INLINE_BYTES = 2**17
"""Smaller bodies are validated faster than a thread is asked to."""
MAX_NESTING = 128
_MAX_PASSED_OVER = 2
"""A body that is too large is read to its end up to so many times the limit: its client would else be cut off while it
sends, and not see why."""

Body = TypeVar("Body", bound=RequestBody)


async def read_body(request: Request, kind: type[Body], max_bytes: int) -> Body:
    """The validated body of a request.

    Raises:
        ApiError, ValidationError, ClientDisconnect: see `read_one_of`.
    """
    return await read_one_of(request, lambda value: kind, max_bytes)


async def read_body_twice(request: Request, kind: type[Body], max_bytes: int) -> tuple[Body, bytes]:
    """The validated body of a request, and its bytes.

    Raises:
        ApiError, ValidationError, ClientDisconnect: see `read_one_of`.
    """
    _check_form(request)
    raw = await _read_bytes(request, max_bytes)
    return await _validated(raw, lambda value: kind), raw


async def read_one_of(request: Request, kind_of: Callable[[dict[str, Any]], type[Body]], max_bytes: int) -> Body:
    """The validated body of a request; `kind_of` tells from the JSON object what it should be.

    Raises:
        ApiError: 413 too large; 415 packed, or from another site's page; 400 not UTF-8, not JSON, not an object, nested
            too deeply.
        ValidationError: the object does not fit its kind.
        ClientDisconnect: the client went away meanwhile.
    """
    _check_form(request)
    return await _validated(await _read_bytes(request, max_bytes), kind_of)


async def _validated(raw: bytes, kind_of: Callable[[dict[str, Any]], type[Body]]) -> Body:
    if len(raw) <= INLINE_BYTES:
        return _validate(raw, kind_of)
    return await asyncio.to_thread(_validate, raw, kind_of)  # a million token ids take half a second


def _check_form(request: Request) -> None:
    """Refuse what is not read as it is, and what a browser sends for a page of another site without asking.

    The type of the content is no matter otherwise: `curl -d` calls JSON a form.
    """
    headers = request.headers
    for name, plain in (("content-encoding", "identity"), ("transfer-encoding", "chunked")):
        encoding = headers.get(name, plain)
        if encoding.strip().lower() != plain:
            raise ApiError(
                f"The request body is encoded as {preview(encoding)} ({name}), which is not read. Send plain JSON.",
                status=415,
                code="unsupported_content_encoding",
                headers={"connection": "close"},
            )
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if "origin" in headers and kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(
            f"A web page has sent a body of type {preview(kind)}. Send it with Content-Type: application/json.",
            status=415,
            code="unsupported_media_type",
            headers={"connection": "close"},
        )


def _validate(raw: bytes, kind_of: Callable[[dict[str, Any]], type[Body]]) -> Body:
    if len(raw) > INLINE_BYTES:
        check_json_size(raw)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        what = f"not valid JSON: {error}" if raw else "empty"
        raise ApiError(f"The request body is {what}. Send a JSON object in UTF-8.", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError("The request body is valid JSON, but not an object. Send an object.", code="invalid_json")
    if raw.count(b"{") + raw.count(b"[") > MAX_NESTING:
        _check_nesting(value)
    return kind_of(value).model_validate(value)


def _check_nesting(value: object) -> None:
    """What passes can be written again, by JSON writers and chat templates, which stop at different depths."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise ApiError(
        f"The request body has objects and arrays nested more than {MAX_NESTING} levels deep. Send flatter ones.",
        code="invalid_json",
    )


async def _read_bytes(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    num_declared = int(declared) if declared.isdecimal() else 0
    body = bytearray()
    num_bytes = 0
    if num_declared <= max_bytes or (num_declared <= _MAX_PASSED_OVER * max_bytes and "expect" not in request.headers):
        async for piece in request.stream():
            num_bytes += len(piece)
            if num_bytes <= max_bytes >= num_declared:
                body += piece
            elif num_bytes > _MAX_PASSED_OVER * max_bytes:
                break
    if max(num_bytes, num_declared) <= max_bytes:
        return bytes(body)
    raise ApiError(
        f"The request body is larger than {max_bytes} bytes. Send less at once.",
        status=413,
        code="request_too_large",
        headers={"connection": "close"},  # the rest of the body is not read
    )


def json_response(body: bytes) -> Response:
    """The answer with this JSON text."""
    return Response(body, media_type="application/json")
