"""Stored responses: written when they end (background ones also when they begin), read back whole or item by item."""

import zlib
from collections.abc import Sequence
from sqlite3 import Connection

import orjson

from ..errors import ApiError
from . import objects, unfinished
from .database import Addition, Database
from .objects import Json, Order, Page
from .unfinished import Lease, StoredRequest

UNFINISHED = frozenset({"queued", "in_progress"})
"""Status of responses that are still being made."""
MAX_HISTORY_BYTES = 64 * 2**20
"""Of the items that a chain of responses may bring into a prompt."""


class AnothersError(Exception):
    """Another process makes this response by now: this one's lease had expired."""


class ResponseStore:
    """The responses of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(
        self,
        principal: str,
        response: Json,
        input_items: Sequence[Json],
        *,
        events: Sequence[bytes] = (),
        begins: tuple[Lease, StoredRequest] | None = None,
        process: str | None = None,
        also: Addition | None = None,
    ) -> None:
        """Write a response, over an earlier state of it.

        Args:
            principal: whose it is.
            response: the response object; its output items have ids.
            input_items: what this request added to the conversation, nothing of earlier turns; complete ones.
            events: the JSON of every event of its stream, if it may be streamed again.
            begins: of a response that is not finished: who makes it, and from what.
            process: who has made it, if it was begun with a lease.
            also: what to do in the same transaction.

        Raises:
            AnothersError: another process than `process` makes it now; nothing is written.
            ApiError: 413, it is too large; 503, the store cannot be used; or what `also` raises.
        """
        body = {name: value for name, value in response.items() if name != "output"}

        def encode() -> tuple[bytes, int]:
            recorded = zlib.compress(b"\n".join(events), 1) if events else b""
            num_asked = len(begins[1].body) if begins else 0
            return recorded, len(orjson.dumps([response, input_items])) + len(recorded) + num_asked

        recorded, size = await self._database.prepare(encode)

        def work(connection: Connection) -> None:
            if process and unfinished.is_anothers(connection, principal, response["id"], process):
                raise AnothersError
            position = objects.put(
                connection,
                principal,
                "response",
                response["id"],
                body,
                now=self._database.clock(),
                created_at=int(response["created_at"]),
                model=response["model"],
                metadata=response.get("metadata") or {},
            )
            objects.add_items(connection, principal, position, "input", input_items)
            objects.add_items(connection, principal, position, "output", response["output"])
            if recorded:
                connection.execute("INSERT INTO events VALUES (?, ?)", (position, recorded))
            if begins is not None:
                unfinished.begin(connection, position, *begins)
            if also is not None:
                also[0](connection)

        await self._database.write(work, size + (also[1] if also else 0))

    async def check(self, response: Json, input_items: Sequence[Json]) -> None:
        """See that a response that is yet to be made can be stored.

        Raises:
            ApiError: 413, its request is too large; 503, the store cannot be used.
        """
        await self._database.check(len(orjson.dumps([response, input_items])))

    async def get(self, principal: str, response_id: str) -> Json:
        """A response object. One that nobody makes, and that cannot be made again, has failed.

        Raises:
            ApiError: 404, there is none; 503, the store cannot be used.
        """

        def read(connection: Connection) -> tuple[Json, list[Json], bool]:
            row = _find(connection, principal, response_id)
            now = self._database.clock()
            lost = row.body["status"] in UNFINISHED and not unfinished.can_go_on(connection, row.position, now)
            return row.body, objects.items_of(connection, row.position, "input") if lost else [], lost

        def read_output(connection: Connection) -> Json:
            row = _find(connection, principal, response_id)
            return row.body | {"output": objects.items_of(connection, row.position, "output")}

        body, input_items, lost = await self._database.read(read)
        if lost:
            message = "The server was stopped before this response was finished. Send the request again."
            failed = body | {"status": "failed", "error": {"code": "server_error", "message": message}, "output": []}
            await self.save(principal, failed, input_items)
        return await self._database.read(read_output)

    async def events(self, principal: str, response_id: str) -> list[bytes]:
        """The JSON of each event of its stream; none: it was not recorded.

        Raises:
            ApiError: 404, there is no such response; 503, the store cannot be used.
        """

        def work(connection: Connection) -> bytes | None:
            row = _find(connection, principal, response_id)
            found = connection.execute("SELECT body FROM events WHERE owner = ?", (row.position,)).fetchone()
            return zlib.decompress(found[0]) if found else None

        recorded = await self._database.read(work)
        return recorded.split(b"\n") if recorded else []

    async def delete(self, principal: str, response_id: str) -> None:
        """Delete a response with its items and events.

        Raises:
            ApiError: 404, there is none; 503, the store cannot be used.
        """
        if not await self._database.write(lambda c: objects.remove(c, principal, "response", response_id)):
            raise response_not_found(response_id)

    async def input_items(
        self, principal: str, response_id: str, *, after: str | None, limit: int, order: Order
    ) -> Page:
        """Some of the items that its request added.

        Raises:
            ApiError: 404, there is no such response; 400, it has no item `after`; 503, the store cannot be used.
        """

        def work(connection: Connection) -> Page | None:
            row = _find(connection, principal, response_id)
            return objects.page_of_items(connection, row.position, "input", after=after, limit=limit, order=order)

        page = await self._database.read(work)
        if page is None:
            raise unknown_cursor(after, f"response '{response_id}'")
        return page

    async def history(self, principal: str, previous_response_id: str) -> list[Json]:
        """The items of a response and all its ancestors, input and output, oldest first.

        Raises:
            ApiError: 400, one of them is gone, unfinished, or all together are too long; 503.
        """

        def work(connection: Connection) -> list[Json]:
            turns: list[list[Json]] = []
            num_bytes = 0
            wanted: str | None = previous_response_id
            while wanted is not None:
                row = objects.find(connection, principal, "response", wanted)
                if row is None:
                    raise _previous_not_found(wanted, previous_response_id)
                if row.body["status"] in UNFINISHED:
                    raise _previous_unfinished(wanted)
                num_bytes += objects.items_size(connection, row.position)
                if num_bytes > MAX_HISTORY_BYTES:
                    raise _history_too_long(previous_response_id)
                parts = (objects.items_of(connection, row.position, part) for part in ("output", "input"))
                turns += parts
                wanted = row.body.get("previous_response_id")
            return [item for turn in reversed(turns) for item in turn]

        return await self._database.read(work)

    async def find_items(self, principal: str, item_ids: Sequence[str]) -> dict[str, Json]:
        """Items of any stored response or conversation by id, for item_reference; unknown ids are left out.

        Raises:
            ApiError: 503, the store cannot be used.
        """
        if not item_ids:
            return {}
        return await self._database.read(lambda connection: objects.find_items(connection, principal, item_ids))


def response_not_found(response_id: str) -> ApiError:
    """404 for a response that the principal does not have."""
    return ApiError(
        f"Response with id '{response_id}' not found. It may have been deleted, have expired, or never been stored.",
        status=404,
        code="response_not_found",
        param="response_id",
    )


def unknown_cursor(after: str | None, where: str) -> ApiError:
    """400 for a list that shall go on after something that is not in it."""
    return ApiError(
        f"Invalid 'after': {where} has no '{after}'. Send the last_id of a page before, or leave it out.",
        code="invalid_value",
        param="after",
    )


def _find(connection: Connection, principal: str, response_id: str) -> objects.ObjectRow:
    row = objects.find(connection, principal, "response", response_id)
    if row is None:
        raise response_not_found(response_id)
    return row


def _previous_not_found(missing: str, asked: str) -> ApiError:
    why = "" if missing == asked else f", which came before '{asked}'"
    return ApiError(
        f"Previous response with id '{missing}' not found{why}. It may have been deleted, have expired, or never been "
        "stored. Send the whole conversation as input.",
        code="previous_response_not_found",
        param="previous_response_id",
    )


def _previous_unfinished(response_id: str) -> ApiError:
    return ApiError(
        f"Previous response '{response_id}' is not finished. Wait until its status is no longer queued or in_progress.",
        code="previous_response_not_finished",
        param="previous_response_id",
    )


def _history_too_long(response_id: str) -> ApiError:
    return ApiError(
        f"The conversation that led to '{response_id}' has more than {MAX_HISTORY_BYTES} bytes. Begin a new one.",
        code="context_length_exceeded",
        param="previous_response_id",
    )
