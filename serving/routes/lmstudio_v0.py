"""LM Studio's older native routes, /api/v0: models with metadata, and OpenAI's endpoints with statistics."""

from collections.abc import AsyncGenerator

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.chat import ChatHandler
from ..handlers.completion import CompletionHandler
from ..handlers.embedding import EmbeddingHandler
from ..handlers.lmstudio.models import NativeModelsHandler
from ..handlers.lmstudio.v0 import StatisticsHandler
from ..handlers.services import Services
from ..principal import principal_of
from ..protocol.answers import lmstudio as answers
from ..protocol.answers.embedding import Embeddings
from ..protocol.chat import ChatCompletionBody
from ..protocol.completion import CompletionBody
from ..protocol.embedding import EmbeddingBody
from ..sse import EventStream, until_disconnect
from .bodies import json_response, read_body
from .operation import documented


def lmstudio_v0_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter(prefix="/api/v0")
    models = NativeModelsHandler(services)
    statistics = StatisticsHandler(services)
    chat, completion, embedding = ChatHandler(services), CompletionHandler(services), EmbeddingHandler(services)

    @router.get(
        "/models", **documented("All models", tag="LM Studio", needs="embeddings", answer=answers.NativeModelsV0)
    )
    async def list_models() -> dict[str, object]:
        return await models.list_v0()

    @router.get(
        "/models/{model_id:path}",
        **documented("One model", tag="LM Studio", needs="embeddings", answer=answers.NativeModelV0),
    )
    async def retrieve_model(model_id: str) -> dict[str, object]:
        return await models.entry_v0(model_id)

    @router.post(
        "/chat/completions",
        **documented(
            "Answer a chat, with statistics",
            tag="LM Studio",
            needs="use",
            body=ChatCompletionBody,
            answer=answers.MeasuredChat,
            events=answers.MeasuredChatChunk,
            is_limited=True,
        ),
    )
    async def create_chat_completion(request: Request) -> Response:
        body = await read_body(request, ChatCompletionBody, max_body_bytes)
        principal = principal_of(request)

        async def events() -> AsyncGenerator[bytes]:
            turn = await chat.prepare(body, principal)
            return statistics.stream(chat.events(turn, body), turn.generation)

        async def answer() -> dict[str, object]:
            turn = await chat.prepare(body, principal)
            return statistics.complete(await chat.answer(turn, body), turn.generation)

        if body.stream:
            return EventStream(events)
        return json_response(orjson.dumps(await until_disconnect(request.receive, answer())))

    @router.post(
        "/completions",
        **documented(
            "Continue prompts, with statistics",
            tag="LM Studio",
            needs="use",
            body=CompletionBody,
            answer=answers.MeasuredCompletion,
            events=answers.MeasuredCompletionChunk,
            is_limited=True,
        ),
    )
    async def create_completion(request: Request) -> Response:
        body = await read_body(request, CompletionBody, max_body_bytes)
        principal = principal_of(request)

        async def events() -> AsyncGenerator[bytes]:
            prepared = await completion.prepare(body, principal)
            return statistics.stream(completion.events(prepared), prepared.generation)

        async def answer() -> dict[str, object]:
            prepared = await completion.prepare(body, principal)
            return statistics.complete(await completion.answer(prepared), prepared.generation)

        if body.stream:
            return EventStream(events)
        return json_response(orjson.dumps(await until_disconnect(request.receive, answer())))

    @router.post(
        "/embeddings",
        **documented(
            "Embed texts", tag="LM Studio", needs="embeddings", body=EmbeddingBody, answer=Embeddings, is_limited=True
        ),
    )
    async def create_embeddings(request: Request) -> Response:
        body = await read_body(request, EmbeddingBody, max_body_bytes)
        answer = embedding.answer(body, principal_of(request))
        return json_response(await until_disconnect(request.receive, answer))

    return router
