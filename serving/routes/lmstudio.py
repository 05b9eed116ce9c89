"""LM Studio's native routes: /api/v1, and /api/v0, whose answers are OpenAI's with statistics."""

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.lmstudio.chat import NativeChat
from ..handlers.lmstudio.models import NativeModelsHandler
from ..handlers.services import Services
from ..principal import principal_of
from ..protocol.lmstudio.chat import NativeChatBody
from ..protocol.lmstudio.models import LoadBody, UnloadBody
from ..sse import EventStream, until_disconnect
from .bodies import json_response, read_body


def lmstudio_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The routes of /api/v1, over the given services."""
    router = APIRouter(prefix="/api/v1")
    models = NativeModelsHandler(services)

    @router.post("/chat", response_model=None)
    async def chat(request: Request) -> Response:
        body = await read_body(request, NativeChatBody, max_body_bytes)
        turn = NativeChat(services, body, principal_of(request.headers))
        if body.stream:
            return EventStream(turn.stream())
        return json_response(orjson.dumps(await until_disconnect(request.receive, turn.answer())))

    @router.get("/models", response_model=None)
    async def list_models() -> dict[str, object]:
        return await models.list_v1()

    @router.post("/models/load", response_model=None)
    async def load(request: Request) -> dict[str, object]:
        return await models.load(await read_body(request, LoadBody, max_body_bytes))

    @router.post("/models/unload", response_model=None)
    async def unload(request: Request) -> dict[str, object]:
        body = await read_body(request, UnloadBody, max_body_bytes)
        return await models.unload(body.instance_id)

    return router
