"""The routes of chat completions that were stored: list, read, relabel and delete them, and read their messages."""

from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.services import Services
from ..principal import principal_of
from ..protocol.answers.stored import Deleted, StoredPage
from ..protocol.conversations import MetadataBody
from ..protocol.queries import ChatListQuery, PageQuery, Query
from .bodies import json_response, read_body
from .operation import documented
from .queries import read_query


def stored_chat_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter(prefix="/v1/chat/completions")
    chats = services.store.chats

    @router.get(
        "",
        **documented(
            "List stored chat completions", tag="Stored chats", needs="use", query=ChatListQuery, answer=StoredPage
        ),
    )
    async def list_chat_completions(request: Request) -> Response:
        query = read_query(request, ChatListQuery)
        page = await chats.page(
            principal_of(request).id,
            after=query.after,
            limit=query.limit,
            order=query.order,
            model=query.model,
            metadata=query.metadata,
        )
        return json_response(orjson.dumps(page.to_json()))

    @router.get(
        "/{completion_id}",
        **documented(
            "Read a stored chat completion", tag="Stored chats", needs="use", query=Query, answer=dict[str, Any]
        ),
    )
    async def retrieve_chat_completion(request: Request, completion_id: str) -> Response:
        read_query(request, Query)
        return json_response(orjson.dumps(await chats.get(principal_of(request).id, completion_id)))

    @router.post(
        "/{completion_id}",
        **documented(
            "Relabel a stored chat completion",
            tag="Stored chats",
            needs="use",
            body=MetadataBody,
            query=Query,
            answer=dict[str, Any],
        ),
    )
    async def update_chat_completion(request: Request, completion_id: str) -> Response:
        read_query(request, Query)
        body = await read_body(request, MetadataBody, max_body_bytes)
        updated = await chats.set_metadata(principal_of(request).id, completion_id, body.metadata)
        return json_response(orjson.dumps(updated))

    @router.delete(
        "/{completion_id}",
        **documented("Delete a stored chat completion", tag="Stored chats", needs="use", query=Query, answer=Deleted),
    )
    async def delete_chat_completion(request: Request, completion_id: str) -> Response:
        read_query(request, Query)
        await chats.delete(principal_of(request).id, completion_id)
        deleted = {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}
        return json_response(orjson.dumps(deleted))

    @router.get(
        "/{completion_id}/messages",
        **documented("List its messages", tag="Stored chats", needs="use", query=PageQuery, answer=StoredPage),
    )
    async def list_messages(request: Request, completion_id: str) -> Response:
        query = read_query(request, PageQuery)
        principal = principal_of(request).id
        page = await chats.messages(principal, completion_id, after=query.after, limit=query.limit, order=query.order)
        return json_response(orjson.dumps(page.to_json()))

    return router
