"""The routes of a response that exists: GET, DELETE, cancel and input_items."""

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.services import Services
from ..handlers.stored_responses import StoredResponsesHandler
from ..principal import principal_of
from ..protocol.queries import ItemsQuery, Query, ResponseQuery
from ..sse import EventStream
from .bodies import json_response
from .queries import read_query


def stored_responses_router(services: Services) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter(prefix="/v1/responses/{response_id}")
    stored = StoredResponsesHandler(services)

    @router.get("", response_model=None)
    async def retrieve_response(request: Request, response_id: str) -> Response:
        query = read_query(request, ResponseQuery)
        principal = principal_of(request.headers)
        if not query.stream:
            return json_response(orjson.dumps(await stored.get(principal, response_id, query.include)))
        after = -1 if query.starting_after is None else query.starting_after
        return EventStream(await stored.events(principal, response_id, after))

    @router.delete("", response_model=None)
    async def delete_response(request: Request, response_id: str) -> Response:
        read_query(request, Query)
        return json_response(orjson.dumps(await stored.delete(principal_of(request.headers), response_id)))

    @router.post("/cancel", response_model=None)
    async def cancel_response(request: Request, response_id: str) -> Response:
        read_query(request, Query)
        return json_response(orjson.dumps(await stored.cancel(principal_of(request.headers), response_id)))

    @router.get("/input_items", response_model=None)
    async def list_input_items(request: Request, response_id: str) -> Response:
        query = read_query(request, ItemsQuery)
        listed = await stored.input_items(principal_of(request.headers), response_id, query)
        return json_response(orjson.dumps(listed))

    return router
