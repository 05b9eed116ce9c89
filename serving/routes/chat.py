"""The route of chat completions."""

from collections.abc import AsyncGenerator

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.chat import ChatHandler
from ..handlers.services import Services
from ..principal import principal_of
from ..protocol.answers.chat import ChatChunk, ChatCompletion
from ..protocol.chat import ChatCompletionBody
from ..sse import EventStream, until_disconnect
from .bodies import json_response, read_body
from .operation import documented


def chat_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The route, over the given services."""
    router = APIRouter(prefix="/v1")
    chat = ChatHandler(services)

    @router.post(
        "/chat/completions",
        **documented(
            "Answer a chat",
            tag="Chat",
            needs="use",
            body=ChatCompletionBody,
            answer=ChatCompletion,
            events=ChatChunk,
            is_limited=True,
        ),
    )
    async def create_chat_completion(request: Request) -> Response:
        body = await read_body(request, ChatCompletionBody, max_body_bytes)
        principal = principal_of(request)

        async def events() -> AsyncGenerator[bytes]:
            return chat.events(await chat.prepare(body, principal), body)

        async def answer() -> dict[str, object]:
            return await chat.answer(await chat.prepare(body, principal), body)

        if body.stream:
            return EventStream(events)
        return json_response(orjson.dumps(await until_disconnect(request.receive, answer())))

    return router
