"""The route of chat completions."""

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
        **documented("Answer a chat", tag="Chat", body=ChatCompletionBody, answer=ChatCompletion, events=ChatChunk),
    )
    async def create_chat_completion(request: Request) -> Response:
        body = await read_body(request, ChatCompletionBody, max_body_bytes)
        turn = await chat.prepare(body, principal_of(request.headers))
        if body.stream:
            return EventStream(chat.events(turn, body))
        answer = await until_disconnect(request.receive, chat.answer(turn, body))
        return json_response(orjson.dumps(answer))

    return router
