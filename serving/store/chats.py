"""Stored chat completions: answers of POST /v1/chat/completions with `store: true`, with the messages they answer."""

from collections.abc import Mapping, Sequence
from sqlite3 import Connection
from typing import Any

import orjson

from ..errors import ApiError
from . import objects
from .database import Database
from .objects import Json, Order, Page
from .responses import unknown_cursor


class ChatStore:
    """The chat completions of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(
        self,
        principal: str,
        completion: Json,
        messages: Sequence[Mapping[str, Any]],
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Write a finished answer.

        Args:
            principal: whose it is.
            completion: the `chat.completion` object, also of a streamed answer.
            messages: the request's, as the client sent them.
            metadata: the request's.

        Raises:
            ApiError: 413, it is too large; 503, the store cannot be used.
        """
        kept = [_message(f"{completion['id']}-{index}", message) for index, message in enumerate(messages)]

        def work(connection: Connection) -> None:
            position = objects.put(
                connection,
                principal,
                "chat",
                completion["id"],
                completion,
                now=self._database.clock(),
                created_at=completion["created"],
                model=completion["model"],
                metadata=metadata or {},
            )
            objects.add_items(connection, principal, position, "input", kept)

        size = await self._database.prepare(lambda: len(orjson.dumps([completion, kept])))
        await self._database.write(work, size)

    async def get(self, principal: str, completion_id: str) -> Json:
        """A completion with its metadata.

        Raises:
            ApiError: 404, there is none; 503, the store cannot be used.
        """
        return await self._database.read(lambda c: _completion(_find(c, principal, completion_id)))

    async def set_metadata(self, principal: str, completion_id: str, metadata: dict[str, str]) -> Json:
        """The completion with its new metadata.

        Raises:
            ApiError: 404, there is none; 503, the store cannot be used.
        """

        def work(connection: Connection) -> Json:
            row = _find(connection, principal, completion_id)
            objects.set_metadata(connection, row.position, metadata, self._database.clock())
            return _completion(row) | {"metadata": metadata}

        return await self._database.write(work)

    async def delete(self, principal: str, completion_id: str) -> None:
        """Delete a completion and its messages.

        Raises:
            ApiError: 404, there is none; 503, the store cannot be used.
        """
        if not await self._database.write(lambda c: objects.remove(c, principal, "chat", completion_id)):
            raise _not_found(completion_id)

    async def page(
        self,
        principal: str,
        *,
        after: str | None,
        limit: int,
        order: Order,
        model: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Page:
        """Some completions, in the order in which they were stored.

        Raises:
            ApiError: 400, there is no completion `after`; 503, the store cannot be used.
        """

        def work(connection: Connection) -> Page:
            start = None
            if after is not None:
                row = objects.find(connection, principal, "chat", after)
                if row is None:
                    raise unknown_cursor(after, "the list of stored chat completions")
                start = row.position
            rows, has_more = objects.list_objects(
                connection,
                principal,
                "chat",
                after=start,
                limit=limit,
                order=order,
                model=model,
                metadata=metadata or {},
            )
            return Page([_completion(row) for row in rows], has_more)

        return await self._database.read(work)

    async def messages(
        self, principal: str, completion_id: str, *, after: str | None, limit: int, order: Order
    ) -> Page:
        """Some of the messages that a completion answers.

        Raises:
            ApiError: 404, there is no such completion; 400, it has no message `after`; 503.
        """

        def work(connection: Connection) -> Page | None:
            position = _find(connection, principal, completion_id).position
            return objects.page_of_items(connection, position, "input", after=after, limit=limit, order=order)

        page = await self._database.read(work)
        if page is None:
            raise unknown_cursor(after, f"chat completion '{completion_id}'")
        return page


def _message(message_id: str, message: Mapping[str, Any]) -> Json:
    """A message as OpenAI lists it: one text, and the parts beside it if there were any."""
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    if parts is not None:
        content = "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str)) or None
    kept = {name: value for name, value in message.items() if value is not None}
    return {"refusal": None, "name": None} | kept | {"id": message_id, "content": content, "content_parts": parts}


def _find(connection: Connection, principal: str, completion_id: str) -> objects.ObjectRow:
    row = objects.find(connection, principal, "chat", completion_id)
    if row is None:
        raise _not_found(completion_id)
    return row


def _completion(row: objects.ObjectRow) -> Json:
    return row.body | {"metadata": row.metadata}


def _not_found(completion_id: str) -> ApiError:
    return ApiError(
        f"Chat completion with id '{completion_id}' not found. Only completions made with store: true can be found, "
        "until they are deleted or expire.",
        status=404,
        code="chat_completion_not_found",
        param="completion_id",
    )
