"""The routes of conversations and their items."""

from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..handlers.conversations import ConversationsHandler
from ..handlers.services import Services
from ..principal import principal_of
from ..protocol.answers.stored import Conversation, Deleted, StoredPage
from ..protocol.conversations import ConversationBody, MetadataBody, NewItemsBody
from ..protocol.queries import IncludeQuery, ItemsQuery, Query
from .bodies import json_response, read_body
from .operation import documented
from .queries import read_query


def conversations_router(services: Services, *, max_body_bytes: int) -> APIRouter:
    """The routes, over the given services."""
    router = APIRouter(prefix="/v1/conversations")
    conversations = ConversationsHandler(services)

    @router.post(
        "",
        **documented(
            "Make a conversation",
            tag="Conversations",
            needs="use",
            body=ConversationBody,
            query=Query,
            answer=Conversation,
        ),
    )
    async def create_conversation(request: Request) -> Response:
        read_query(request, Query)
        body = await read_body(request, ConversationBody, max_body_bytes)
        return json_response(orjson.dumps(await conversations.create(principal_of(request).id, body)))

    @router.get(
        "/{conversation_id}",
        **documented("Read a conversation", tag="Conversations", needs="use", query=Query, answer=Conversation),
    )
    async def retrieve_conversation(request: Request, conversation_id: str) -> Response:
        read_query(request, Query)
        return json_response(orjson.dumps(await conversations.get(principal_of(request).id, conversation_id)))

    @router.post(
        "/{conversation_id}",
        **documented(
            "Relabel a conversation",
            tag="Conversations",
            needs="use",
            body=MetadataBody,
            query=Query,
            answer=Conversation,
        ),
    )
    async def update_conversation(request: Request, conversation_id: str) -> Response:
        read_query(request, Query)
        body = await read_body(request, MetadataBody, max_body_bytes)
        updated = await conversations.set_metadata(principal_of(request).id, conversation_id, body.metadata)
        return json_response(orjson.dumps(updated))

    @router.delete(
        "/{conversation_id}",
        **documented("Delete a conversation", tag="Conversations", needs="use", query=Query, answer=Deleted),
    )
    async def delete_conversation(request: Request, conversation_id: str) -> Response:
        read_query(request, Query)
        return json_response(orjson.dumps(await conversations.delete(principal_of(request).id, conversation_id)))

    @router.post(
        "/{conversation_id}/items",
        **documented(
            "Add items", tag="Conversations", needs="use", body=NewItemsBody, query=IncludeQuery, answer=StoredPage
        ),
    )
    async def create_items(request: Request, conversation_id: str) -> Response:
        query = read_query(request, IncludeQuery)
        body = await read_body(request, NewItemsBody, max_body_bytes)
        added = await conversations.add_items(principal_of(request).id, conversation_id, body, query.include)
        return json_response(orjson.dumps(added))

    @router.get(
        "/{conversation_id}/items",
        **documented("List items", tag="Conversations", needs="use", query=ItemsQuery, answer=StoredPage),
    )
    async def list_items(request: Request, conversation_id: str) -> Response:
        query = read_query(request, ItemsQuery)
        listed = await conversations.list_items(principal_of(request).id, conversation_id, query)
        return json_response(orjson.dumps(listed))

    @router.get(
        "/{conversation_id}/items/{item_id}",
        **documented("Read an item", tag="Conversations", needs="use", query=IncludeQuery, answer=dict[str, Any]),
    )
    async def retrieve_item(request: Request, conversation_id: str, item_id: str) -> Response:
        include = read_query(request, IncludeQuery).include
        item = await conversations.get_item(principal_of(request).id, conversation_id, item_id, include)
        return json_response(orjson.dumps(item))

    @router.delete(
        "/{conversation_id}/items/{item_id}",
        **documented("Delete an item", tag="Conversations", needs="use", query=Query, answer=Conversation),
    )
    async def delete_item(request: Request, conversation_id: str, item_id: str) -> Response:
        read_query(request, Query)
        conversation = await conversations.delete_item(principal_of(request).id, conversation_id, item_id)
        return json_response(orjson.dumps(conversation))

    return router
