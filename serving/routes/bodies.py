"""Request bodies in, JSON out: bodies are bounded, strict JSON, an object, validated; every fault is a 400 or a 413."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from ..errors import ApiError
from ..protocol.body import RequestBody

INLINE_BYTES = 2**17
"""Smaller bodies are validated faster than a thread is asked to."""
MAX_NESTING = 128

Body = TypeVar("Body", bound=RequestBody)


async def read_body(request: Request, kind: type[Body], max_bytes: int) -> Body:
    """The validated body of a request.

    Raises:
        ApiError, ValidationError, ClientDisconnect: see `read_one_of`.
    """
    return await read_one_of(request, lambda value: kind, max_bytes)


async def read_one_of(request: Request, kind_of: Callable[[dict[str, Any]], type[Body]], max_bytes: int) -> Body:
    """The validated body of a request; `kind_of` tells from the JSON object what it should be.

    Raises:
        ApiError: 413 too large; 400 not UTF-8, not JSON, not an object, nested too deeply.
        ValidationError: the object does not fit its kind.
        ClientDisconnect: the client went away meanwhile.
    """
    raw = await _read_bytes(request, max_bytes)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        what = f"not valid JSON: {error}" if raw else "empty"
        raise ApiError(f"The request body is {what}. Send a JSON object in UTF-8.", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError("The request body is valid JSON, but not an object. Send an object.", code="invalid_json")
    kind = kind_of(value)

    def validate() -> Body:
        if raw.count(b"{") + raw.count(b"[") > MAX_NESTING:
            _check_nesting(value)
        return kind.model_validate(value)

    if len(raw) <= INLINE_BYTES:
        return validate()
    return await asyncio.to_thread(validate)  # a million token ids take half a second


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
    body = bytearray()
    if not (declared.isdecimal() and int(declared) > max_bytes):
        async for piece in request.stream():
            body += piece
            if len(body) > max_bytes:
                break
        else:
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
