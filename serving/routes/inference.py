"""POST /v1/chat/completions."""

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.chat import ChatHandler
from ..handlers.services import Services
from ..protocol.chat import ChatCompletionBody
from ..sse import EventStream, until_disconnect
from .bodies import json_response, read_body


def inference_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter(prefix="/v1")
    chat = ChatHandler(services)

    @router.post("/chat/completions", response_model=None)
    async def create_chat_completion(request: Request) -> Response:
        body = await read_body(request, ChatCompletionBody, max_body_bytes)
        generation = await chat.prepare(body)
        if body.stream:
            return EventStream(chat.events(generation, body))
        return json_response(orjson.dumps(await until_disconnect(request.receive, chat.answer(generation, body))))

    return router
