"""POST /tokenize and /detokenize, also under /v1."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.services import Services
from ..handlers.tokenize import TokenizeHandler
from ..principal import principal_of
from ..protocol.answers.tokenize import DetokenizedText, Tokens
from ..protocol.tokenize import DetokenizeBody, TokenizeChatBody, TokenizeTextBody
from ..sse import until_disconnect
from .bodies import json_response, read_body, read_one_of
from .operation import documented


def tokenize_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter()
    handler = TokenizeHandler(services)

    async def tokenize(request: Request) -> Response:
        body = await read_one_of(request, _kind, max_body_bytes)
        tokenizing = handler.tokenize(body, principal_of(request))
        return json_response(await until_disconnect(request.receive, tokenizing))

    async def detokenize(request: Request) -> Response:
        body = await read_body(request, DetokenizeBody, max_body_bytes)
        return json_response(await handler.detokenize(body))

    for path in ("/v1/tokenize", "/tokenize"):
        bodies = (TokenizeTextBody, TokenizeChatBody)
        described = documented("Tokens of a text or a chat", tag="Text", needs="embeddings", body=bodies, answer=Tokens)
        router.add_api_route(path, tokenize, methods=["POST"], **described)
    for path in ("/v1/detokenize", "/detokenize"):
        described = documented(
            "The text of tokens", tag="Text", needs="embeddings", body=DetokenizeBody, answer=DetokenizedText
        )
        router.add_api_route(path, detokenize, methods=["POST"], **described)
    return router


def _kind(body: dict[str, Any]) -> type[TokenizeTextBody] | type[TokenizeChatBody]:
    return TokenizeChatBody if "messages" in body else TokenizeTextBody
