"""POST /v1/embeddings."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.embedding import EmbeddingHandler
from ..handlers.services import Services
from ..principal import principal_of
from ..protocol.answers.embedding import Embeddings
from ..protocol.embedding import EmbeddingBody
from ..sse import until_disconnect
from .bodies import json_response, read_body
from .operation import documented


def embeddings_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The route, over the given services."""
    router = APIRouter(prefix="/v1")
    handler = EmbeddingHandler(services)

    @router.post(
        "/embeddings",
        **documented(
            "Embed texts", tag="Text", needs="embeddings", body=EmbeddingBody, answer=Embeddings, is_limited=True
        ),
    )
    async def create_embeddings(request: Request) -> Response:
        body = await read_body(request, EmbeddingBody, max_body_bytes)
        answer = handler.answer(body, principal_of(request))
        return json_response(await until_disconnect(request.receive, answer))

    return router
