"""Stored conversations: named lists of items that requests read and append to."""

import time
import uuid
from collections.abc import Mapping, Sequence
from sqlite3 import Connection
from typing import Any

import orjson

from ..errors import ApiError
from . import objects
from .database import Database, Work
from .items import complete_items, new_item_id
from .objects import Json, Order, Page
from .responses import unknown_cursor


class ConversationStore:
    """The conversations of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, principal: str, items: Sequence[Mapping[str, Any]], metadata: dict[str, str]) -> Json:
        """A new conversation object.

        Raises:
            ApiError: 413, it is too large; 503, the store cannot be used.
        """
        conversation_id = f"conv_{uuid.uuid4().hex}"
        created_at = int(time.time())
        complete, size = await self._complete(items)

        def work(connection: Connection) -> Json:
            now = self._database.clock()
            position = objects.put(
                connection,
                principal,
                "conversation",
                conversation_id,
                {},
                now=now,
                created_at=created_at,
                metadata=metadata,
            )
            _add(connection, principal, position, complete)
            return _conversation(_find(connection, principal, conversation_id))

        return await self._database.write(work, size)

    async def get(self, principal: str, conversation_id: str) -> Json:
        """A conversation object.

        Raises:
            ApiError: 404, there is none; 503, the store cannot be used.
        """
        return await self._database.read(lambda c: _conversation(_find(c, principal, conversation_id)))

    async def set_metadata(self, principal: str, conversation_id: str, metadata: dict[str, str]) -> Json:
        """The conversation object with its new metadata.

        Raises:
            ApiError: 404, there is none; 503, the store cannot be used.
        """

        def work(connection: Connection) -> Json:
            row = _find(connection, principal, conversation_id)
            objects.set_metadata(connection, row.position, metadata, self._database.clock())
            return _conversation(_find(connection, principal, conversation_id))

        return await self._database.write(work)

    async def delete(self, principal: str, conversation_id: str) -> None:
        """Delete a conversation and its items; the responses that were part of it stay.

        Raises:
            ApiError: 404, there is none; 503, the store cannot be used.
        """
        if not await self._database.write(lambda c: objects.remove(c, principal, "conversation", conversation_id)):
            raise conversation_not_found(conversation_id)

    async def append(self, principal: str, conversation_id: str, items: Sequence[Mapping[str, Any]]) -> list[Json]:
        """Add items at the end; returns them as stored.

        An item whose id the conversation already has gets a new one.

        Raises:
            ApiError: 404, there is no such conversation; 413, it would become too large; 503.
        """
        return await self._database.write(*await self.appending(principal, conversation_id, items))

    async def appending(
        self, principal: str, conversation_id: str, items: Sequence[Mapping[str, Any]]
    ) -> tuple[Work[list[Json]], int]:
        """The work of `append`, for a transaction that does more, and how many bytes it adds."""
        complete, size = await self._complete(items)

        def work(connection: Connection) -> list[Json]:
            row = _find(connection, principal, conversation_id)
            if objects.items_size(connection, row.position) + size > self._database.max_record_bytes:
                raise _conversation_full(conversation_id, self._database.max_record_bytes)
            objects.touch(connection, row.position, self._database.clock())
            return _add(connection, principal, row.position, complete)

        return work, size

    async def items(self, principal: str, conversation_id: str) -> list[Json]:
        """All items, oldest first.

        Raises:
            ApiError: 404, there is no such conversation; 503, the store cannot be used.
        """

        def work(connection: Connection) -> list[Json]:
            return objects.items_of(connection, _find(connection, principal, conversation_id).position, "input")

        return await self._database.read(work)

    async def page(self, principal: str, conversation_id: str, *, after: str | None, limit: int, order: Order) -> Page:
        """Some of its items.

        Raises:
            ApiError: 404, there is no such conversation; 400, it has no item `after`; 503.
        """

        def work(connection: Connection) -> Page | None:
            position = _find(connection, principal, conversation_id).position
            return objects.page_of_items(connection, position, "input", after=after, limit=limit, order=order)

        page = await self._database.read(work)
        if page is None:
            raise unknown_cursor(after, f"conversation '{conversation_id}'")
        return page

    async def get_item(self, principal: str, conversation_id: str, item_id: str) -> Json:
        """One item.

        Raises:
            ApiError: 404, there is no such conversation or item; 503, the store cannot be used.
        """

        def work(connection: Connection) -> Json | None:
            position = _find(connection, principal, conversation_id).position
            return objects.item_of(connection, position, "input", item_id)

        item = await self._database.read(work)
        if item is None:
            raise _item_not_found(conversation_id, item_id)
        return item

    async def delete_item(self, principal: str, conversation_id: str, item_id: str) -> Json:
        """The conversation object after the deletion of one item.

        Raises:
            ApiError: 404, there is no such conversation or item; 503, the store cannot be used.
        """

        def work(connection: Connection) -> Json:
            row = _find(connection, principal, conversation_id)
            if not objects.remove_item(connection, row.position, "input", item_id):
                raise _item_not_found(conversation_id, item_id)
            objects.touch(connection, row.position, self._database.clock())
            return _conversation(row)

        return await self._database.write(work)

    async def _complete(self, items: Sequence[Mapping[str, Any]]) -> tuple[list[Json], int]:
        """The items as they are stored, and how many bytes they have."""

        def complete() -> tuple[list[Json], int]:
            completed = complete_items(items)
            return completed, len(orjson.dumps(completed))

        return await self._database.prepare(complete)


def conversation_not_found(conversation_id: str) -> ApiError:
    """404 for a conversation that the principal does not have."""
    return ApiError(
        f"Conversation with id '{conversation_id}' not found. It may have been deleted or have expired.",
        status=404,
        code="conversation_not_found",
        param="conversation",
    )


def _find(connection: Connection, principal: str, conversation_id: str) -> objects.ObjectRow:
    row = objects.find(connection, principal, "conversation", conversation_id)
    if row is None:
        raise conversation_not_found(conversation_id)
    return row


def _add(connection: Connection, principal: str, position: int, items: list[Json]) -> list[Json]:
    taken: set[str] = set()
    for item in items:
        if item["id"] in taken or objects.item_of(connection, position, "input", item["id"]) is not None:
            item["id"] = new_item_id(item["type"])
        taken.add(item["id"])
    objects.add_items(connection, principal, position, "input", items)
    return items


def _conversation(row: objects.ObjectRow) -> Json:
    return {"id": row.id, "object": "conversation", "created_at": row.created_at, "metadata": row.metadata}


def _item_not_found(conversation_id: str, item_id: str) -> ApiError:
    return ApiError(
        f"Item with id '{item_id}' not found in conversation '{conversation_id}'.",
        status=404,
        code="item_not_found",
        param="item_id",
    )


def _conversation_full(conversation_id: str, limit: int) -> ApiError:
    return ApiError(
        f"Conversation '{conversation_id}' would have more than {limit} bytes. Begin a new one.",
        status=413,
        code="record_too_large",
        param="conversation",
    )
