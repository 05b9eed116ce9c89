"""The routes of a response that exists: GET, DELETE, cancel and input_items."""

from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.services import Services
from ..handlers.stored_responses import StoredResponsesHandler
from ..principal import principal_of
from ..protocol.answers import responses as answers
from ..protocol.answers.stored import Deleted, StoredPage
from ..protocol.queries import ItemsQuery, Query, ResponseQuery
from ..sse import EventStream
from .bodies import json_response
from .operation import documented
from .queries import read_query


def stored_responses_router(services: Services) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter(prefix="/v1/responses/{response_id}")
    stored = StoredResponsesHandler(services)

    @router.get(
        "",
        **documented(
            "Read a response, or its events once more",
            tag="Responses",
            needs="use",
            query=ResponseQuery,
            answer=answers.Response,
            events=dict[str, Any],
        ),
    )
    async def retrieve_response(request: Request, response_id: str) -> Response:
        query = read_query(request, ResponseQuery)
        principal = principal_of(request).id
        if not query.stream:
            return json_response(orjson.dumps(await stored.get(principal, response_id, query.include)))
        after = -1 if query.starting_after is None else query.starting_after
        return EventStream(await stored.events(principal, response_id, after))

    @router.delete("", **documented("Delete a response", tag="Responses", needs="use", query=Query, answer=Deleted))
    async def delete_response(request: Request, response_id: str) -> Response:
        read_query(request, Query)
        return json_response(orjson.dumps(await stored.delete(principal_of(request).id, response_id)))

    @router.post(
        "/cancel",
        **documented(
            "Cancel a response in the background", tag="Responses", needs="use", query=Query, answer=answers.Response
        ),
    )
    async def cancel_response(request: Request, response_id: str) -> Response:
        read_query(request, Query)
        return json_response(orjson.dumps(await stored.cancel(principal_of(request).id, response_id)))

    @router.get(
        "/input_items",
        **documented(
            "List the items that a response was made from",
            tag="Responses",
            needs="use",
            query=ItemsQuery,
            answer=StoredPage,
        ),
    )
    async def list_input_items(request: Request, response_id: str) -> Response:
        query = read_query(request, ItemsQuery)
        listed = await stored.input_items(principal_of(request).id, response_id, query)
        return json_response(orjson.dumps(listed))

    return router
