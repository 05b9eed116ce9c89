"""Anthropic's routes: POST /v1/messages and /v1/messages/count_tokens."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.anthropic.content import PING
from ..handlers.anthropic.messages import MessagesHandler
from ..handlers.anthropic.request import not_offered
from ..handlers.services import Services
from ..principal import principal_of
from ..protocol.answers.anthropic import Message, MessageTokens
from ..protocol.anthropic.messages import MessagesBody, PromptBody
from ..sse import EventStream, until_disconnect
from .bodies import json_response, read_body
from .operation import documented


def anthropic_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter(prefix="/v1/messages")
    messages = MessagesHandler(services)

    @router.post(
        "",
        **documented(
            "Make a message",
            tag="Anthropic",
            needs="use",
            body=MessagesBody,
            answer=Message,
            events=dict[str, Any],
            is_limited=True,
        ),
    )
    async def create_message(request: Request) -> Response:
        body = await read_body(request, MessagesBody, max_body_bytes)
        principal = principal_of(request)

        async def events() -> AsyncGenerator[bytes]:
            return messages.events(await messages.prepare(body, principal), body)

        async def answer() -> bytes:
            return await messages.answer(await messages.prepare(body, principal), body)

        if body.stream:
            response: Response = EventStream(events, PING)
        else:
            response = json_response(await until_disconnect(request.receive, answer()))
        if names := not_offered(body):
            response.headers["x-penstock-tools-not-offered"] = ", ".join(map(_header_value, names[:16]))
        return response

    @router.post(
        "/count_tokens",
        **documented("Count tokens", tag="Anthropic", needs="use", body=PromptBody, answer=MessageTokens),
    )
    async def count_tokens(request: Request) -> Response:
        body = await read_body(request, PromptBody, max_body_bytes)
        counting = messages.count_tokens(body, principal_of(request))
        return json_response(await until_disconnect(request.receive, counting))

    return router


def _header_value(name: str) -> str:
    """A client's text must not end the header."""
    return "".join(character if 32 <= ord(character) < 127 else "?" for character in name)[:64]
