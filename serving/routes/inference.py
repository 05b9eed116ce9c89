"""The three routes that use a model: chat completions, completions and embeddings."""

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.chat import ChatHandler
from ..handlers.completion import CompletionHandler
from ..handlers.embedding import EmbeddingHandler
from ..handlers.services import Services
from ..protocol.chat import ChatCompletionBody
from ..protocol.completion import CompletionBody
from ..protocol.embedding import EmbeddingBody
from ..sse import EventStream, until_disconnect
from .bodies import read_body


def inference_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter(prefix="/v1")
    chat = ChatHandler(services)
    completion = CompletionHandler(services)
    embedding = EmbeddingHandler(services)

    @router.post("/chat/completions", response_model=None)
    async def create_chat_completion(request: Request) -> Response:
        body = await read_body(request, ChatCompletionBody, max_body_bytes)
        generation = await chat.prepare(body)
        if body.stream:
            return EventStream(chat.events(generation, body))
        return _json(orjson.dumps(await until_disconnect(request.receive, chat.answer(generation, body))))

    @router.post("/completions", response_model=None)
    async def create_completion(request: Request) -> Response:
        body = await read_body(request, CompletionBody, max_body_bytes)
        generation = await completion.prepare(body)
        if body.stream:
            return EventStream(completion.events(generation, body))
        return _json(orjson.dumps(await until_disconnect(request.receive, completion.answer(generation, body))))

    @router.post("/embeddings", response_model=None)
    async def create_embeddings(request: Request) -> Response:
        body = await read_body(request, EmbeddingBody, max_body_bytes)
        return _json(await until_disconnect(request.receive, embedding.answer(body)))

    return router


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
