"""LM Studio's native routes, /api/v1: chats, and the models on this machine and on their way to it."""

from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.lmstudio.chat import NativeChat
from ..handlers.lmstudio.downloads import NativeDownloadsHandler
from ..handlers.lmstudio.models import NativeModelsHandler
from ..handlers.services import Services
from ..principal import principal_of
from ..protocol.answers import lmstudio as answers
from ..protocol.lmstudio.chat import NativeChatBody
from ..protocol.lmstudio.models import DownloadBody, LoadBody, UnloadBody
from ..sse import EventStream, until_disconnect
from .bodies import json_response, read_body
from .operation import documented


def lmstudio_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The routes of /api/v1, over the given services."""
    router = APIRouter(prefix="/api/v1")
    models = NativeModelsHandler(services)
    downloads = NativeDownloadsHandler(services)

    @router.post(
        "/chat",
        **documented(
            "Answer a chat",
            tag="LM Studio",
            needs="use",
            body=NativeChatBody,
            answer=answers.NativeChat,
            events=dict[str, Any],
            is_limited=True,
        ),
    )
    async def chat(request: Request) -> Response:
        body = await read_body(request, NativeChatBody, max_body_bytes)
        turn = NativeChat(services, body, principal_of(request))
        if body.stream:
            return EventStream(turn.stream())
        return json_response(orjson.dumps(await until_disconnect(request.receive, turn.answer())))

    @router.get("/models", **documented("All models", tag="LM Studio", needs="embeddings", answer=answers.NativeModels))
    async def list_models() -> dict[str, object]:
        return await models.list_v1()

    @router.post(
        "/models/load",
        **documented("Load a model", tag="LM Studio", needs="admin", body=LoadBody, answer=answers.LoadedModel),
    )
    async def load(request: Request) -> dict[str, object]:
        return await models.load(await read_body(request, LoadBody, max_body_bytes))

    @router.post(
        "/models/unload",
        **documented("Unload a model", tag="LM Studio", needs="admin", body=UnloadBody, answer=answers.UnloadedModel),
    )
    async def unload(request: Request) -> dict[str, object]:
        body = await read_body(request, UnloadBody, max_body_bytes)
        return await models.unload(body.instance_id)

    @router.post(
        "/models/download",
        **documented("Fetch a model", tag="LM Studio", needs="admin", body=DownloadBody, answer=answers.DownloadStatus),
    )
    async def download(request: Request) -> dict[str, object]:
        return await downloads.start(await read_body(request, DownloadBody, max_body_bytes))

    @router.get(
        "/models/download/status/{job_id}",
        **documented("How far a download is", tag="LM Studio", needs="admin", answer=answers.DownloadStatus),
    )
    async def download_status(job_id: str) -> dict[str, object]:
        return await downloads.status(job_id)

    return router
