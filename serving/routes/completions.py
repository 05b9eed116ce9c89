"""POST /v1/completions."""

from collections.abc import AsyncGenerator

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.completion import CompletionHandler
from ..handlers.services import Services
from ..principal import principal_of
from ..protocol.answers.completion import Completion, CompletionChunk
from ..protocol.completion import CompletionBody
from ..sse import EventStream, until_disconnect
from .bodies import json_response, read_body
from .operation import documented


def completions_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The route, over the given services."""
    router = APIRouter(prefix="/v1")
    handler = CompletionHandler(services)

    @router.post(
        "/completions",
        **documented(
            "Continue prompts",
            tag="Text",
            needs="use",
            body=CompletionBody,
            answer=Completion,
            events=CompletionChunk,
            is_limited=True,
        ),
    )
    async def create_completion(request: Request) -> Response:
        body = await read_body(request, CompletionBody, max_body_bytes)
        principal = principal_of(request)

        async def events() -> AsyncGenerator[bytes]:
            return handler.events(await handler.prepare(body, principal))

        async def answer() -> dict[str, object]:
            return await handler.answer(await handler.prepare(body, principal))

        if body.stream:
            return EventStream(events)
        return json_response(orjson.dumps(await until_disconnect(request.receive, answer())))

    return router
