"""The routes that make responses: POST /v1/responses and its two neighbours, which count tokens and compact."""

from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.responses.handler import ResponsesHandler
from ..handlers.services import Services
from ..limits.gate import visit_of
from ..principal import principal_of
from ..protocol.answers import responses as answers
from ..protocol.responses.body import CompactBody, InputTokensBody, ResponseBody
from ..sse import EventStream, until_disconnect
from ..store.unfinished import StoredRequest
from .bodies import json_response, read_body, read_body_twice
from .operation import documented

NOT_OFFERED = "x-penstock-tools-not-offered"
"""Names the types of tools that the model does not get since nobody here runs them, such as web_search."""
MAX_NAMED_TOOLS = 32


def responses_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter(prefix="/v1")
    responses = ResponsesHandler(services)

    @router.post(
        "/responses",
        **documented(
            "Make a response",
            tag="Responses",
            needs="use",
            body=ResponseBody,
            answer=answers.Response,
            events=dict[str, Any],
            is_limited=True,
        ),
    )
    async def create_response(request: Request) -> Response:
        body, raw = await read_body_twice(request, ResponseBody, max_body_bytes)
        principal = principal_of(request)
        with services.runs.turn_in(principal.id, body.conversation.id if body.conversation else None):
            accepted = await until_disconnect(request.receive, responses.accept(body, principal))
            live = accepted.live
            try:
                run = await services.runs.start(
                    live,
                    principal.id,
                    store=body.store,
                    stream=body.stream,
                    background=StoredRequest(raw, accepted.origin.seed) if body.background else None,
                )
            except BaseException:
                await live.close()
                raise
        if body.background and (visit := visit_of(request)) is not None:
            visit.hold()
            run.when_done(visit.release)
        if body.stream:
            answer: Response = EventStream(run.stream())
        elif body.background:
            answer = json_response(orjson.dumps(run.response))
        else:
            response = await until_disconnect(request.receive, run.result())
            if live.error is not None:
                raise live.error
            answer = json_response(orjson.dumps(response))
        if accepted.not_offered:
            answer.headers[NOT_OFFERED] = ", ".join(accepted.not_offered[:MAX_NAMED_TOOLS])
        return answer

    @router.post(
        "/responses/input_tokens",
        **documented(
            "Count a prompt's tokens", tag="Responses", needs="use", body=InputTokensBody, answer=answers.InputTokens
        ),
    )
    async def count_input_tokens(request: Request) -> Response:
        body = await read_body(request, InputTokensBody, max_body_bytes)
        counting = responses.count(body, principal_of(request))
        return json_response(orjson.dumps(await until_disconnect(request.receive, counting)))

    @router.post(
        "/responses/compact",
        **documented(
            "Shorten a conversation",
            tag="Responses",
            needs="use",
            body=CompactBody,
            answer=answers.CompactedResponse,
            is_limited=True,
        ),
    )
    async def compact_conversation(request: Request) -> Response:
        body = await read_body(request, CompactBody, max_body_bytes)
        compacting = responses.compact(body, principal_of(request))
        return json_response(orjson.dumps(await until_disconnect(request.receive, compacting)))

    return router
