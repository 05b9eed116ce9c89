"""POST /v1/rerank and /v1/score, also under the paths that Cohere's and vLLM's clients use."""

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.rerank import RerankHandler
from ..handlers.services import Services
from ..principal import principal_of
from ..protocol.answers.rerank import Ranking, Scores
from ..protocol.rerank import RerankBody, ScoreBody
from ..sse import until_disconnect
from .bodies import json_response, read_body
from .operation import documented


def rerank_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter()
    handler = RerankHandler(services)

    async def rerank(request: Request) -> Response:
        body = await read_body(request, RerankBody, max_body_bytes)
        answer = handler.rerank(body, principal_of(request))
        return json_response(orjson.dumps(await until_disconnect(request.receive, answer)))

    async def score(request: Request) -> Response:
        body = await read_body(request, ScoreBody, max_body_bytes)
        answer = handler.score(body, principal_of(request))
        return json_response(orjson.dumps(await until_disconnect(request.receive, answer)))

    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        described = documented(
            "Order documents by a query",
            tag="Text",
            needs="embeddings",
            body=RerankBody,
            answer=Ranking,
            is_limited=True,
        )
        router.add_api_route(path, rerank, methods=["POST"], **described)
    for path in ("/v1/score", "/score"):
        described = documented(
            "Score pairs of texts", tag="Text", needs="embeddings", body=ScoreBody, answer=Scores, is_limited=True
        )
        router.add_api_route(path, score, methods=["POST"], **described)
    return router
