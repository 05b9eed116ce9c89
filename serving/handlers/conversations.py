"""Conversations: their metadata, and their items in and out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ApiError
from ..protocol.conversations import ConversationBody, NewItemsBody
from ..protocol.queries import ItemsQuery
from ..protocol.responses.items import Item, ItemReference
from ..store.objects import Page
from .includes import with_included
from .responses.stored_items import stored_item
from .services import Services

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ConversationsHandler:
    """The routes below /v1/conversations."""

    services: Services

    async def create(self, principal: str, body: ConversationBody) -> Json:
        """A new conversation.

        Raises:
            ApiError: 404, it refers to an unknown item; 413, it is too large; 503, the store cannot be used.
        """
        items = await self._stored(principal, body.items)
        return await self.services.store.conversations.create(principal, items, body.metadata)

    async def get(self, principal: str, conversation_id: str) -> Json:
        """A conversation.

        Raises:
            ApiError: 404, there is none; 503, the store cannot be used.
        """
        return await self.services.store.conversations.get(principal, conversation_id)

    async def set_metadata(self, principal: str, conversation_id: str, metadata: dict[str, str]) -> Json:
        """The conversation with its new metadata.

        Raises:
            ApiError: 404, there is none; 503, the store cannot be used.
        """
        return await self.services.store.conversations.set_metadata(principal, conversation_id, metadata)

    async def delete(self, principal: str, conversation_id: str) -> Json:
        """Delete a conversation with its items.

        Raises:
            ApiError: 404, there is none; 503, the store cannot be used.
        """
        await self.services.store.conversations.delete(principal, conversation_id)
        return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}

    async def add_items(self, principal: str, conversation_id: str, body: NewItemsBody, include: Sequence[str]) -> Json:
        """Append items; returns them as a list object.

        Raises:
            ApiError: 404, there is no such conversation or referenced item; 413, it would be too large; 503.
        """
        items = await self._stored(principal, body.items)
        added = await self.services.store.conversations.append(principal, conversation_id, items)
        return Page(added, has_more=False).to_json(with_included(added, include))

    async def list_items(self, principal: str, conversation_id: str, query: ItemsQuery) -> Json:
        """A page of its items.

        Raises:
            ApiError: 404, there is no such conversation; 400, unknown `after`; 503, the store cannot be used.
        """
        page = await self.services.store.conversations.page(
            principal, conversation_id, after=query.after, limit=query.limit, order=query.order
        )
        return page.to_json(with_included(page.items, query.include))

    async def get_item(self, principal: str, conversation_id: str, item_id: str, include: Sequence[str]) -> Json:
        """One item.

        Raises:
            ApiError: 404, there is no such conversation or item; 503, the store cannot be used.
        """
        item = await self.services.store.conversations.get_item(principal, conversation_id, item_id)
        return with_included([item], include)[0]

    async def delete_item(self, principal: str, conversation_id: str, item_id: str) -> Json:
        """The conversation after the deletion of one item.

        Raises:
            ApiError: 404, there is no such conversation or item; 503, the store cannot be used.
        """
        return await self.services.store.conversations.delete_item(principal, conversation_id, item_id)

    async def _stored(self, principal: str, items: Sequence[Item]) -> list[Json]:
        """Items as they are stored; a reference becomes what it refers to."""
        wanted = [item.id for item in items if isinstance(item, ItemReference)]
        found = await self.services.store.responses.find_items(principal, wanted)
        stored = []
        for index, item in enumerate(items):
            if not isinstance(item, ItemReference):
                stored.append(stored_item(item))
            elif item.id in found:
                stored.append(found[item.id])
            else:
                raise ApiError(
                    f"Item with id '{item.id}' not found. Send the item itself.",
                    status=404,
                    code="item_not_found",
                    param=f"items.{index}",
                )
        return stored
