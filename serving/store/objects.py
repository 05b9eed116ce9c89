"""The rows behind responses, conversations and chat completions, handled inside a transaction.

All functions take the connection of a transaction (`Database.read`, `Database.write`) and a principal, and see the rows
of that principal only.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

Kind = Literal["response", "conversation", "chat"]
Part = Literal["input", "output"]
Order = Literal["asc", "desc"]
Json = dict[str, Any]

MAX_PAGE_BYTES = 16 * 2**20
"""Pages end early rather than have more than this, except for a single large entry."""


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """One object without its items."""

    position: int
    id: str
    created_at: int
    """Unix seconds."""
    metadata: dict[str, str]
    body: Json


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    items: list[Json]
    has_more: bool
    """Further ones follow in the list's order."""

    def to_json(self, items: list[Json] | None = None) -> Json:
        """OpenAI's list object, with other forms of the items if they are given."""
        return {
            "object": "list",
            "data": self.items if items is None else items,
            "first_id": self.items[0]["id"] if self.items else None,
            "last_id": self.items[-1]["id"] if self.items else None,
            "has_more": self.has_more,
        }


def page_of(items: list[Json], *, after: str | None, limit: int, order: Order) -> Page | None:
    """Some of `items`; None: none of them has the id `after`."""
    ordered = items if order == "asc" else items[::-1]
    if after is not None:
        ids = [item["id"] for item in ordered]
        if after not in ids:
            return None
        ordered = ordered[ids.index(after) + 1 :]
    return Page(ordered[:limit], len(ordered) > limit)


def put(
    connection: sqlite3.Connection,
    principal: str,
    kind: Kind,
    object_id: str,
    body: Json,
    *,
    now: float,
    created_at: int,
    model: str = "",
    metadata: dict[str, str],
) -> int:
    """Write an object, over an earlier one of that id, whose items and events go; returns its position."""
    connection.execute(
        "DELETE FROM objects WHERE principal = ? AND kind = ? AND id = ?",
        (principal, kind, object_id),
    )
    cursor = connection.execute(
        "INSERT INTO objects (principal, kind, id, created_at, changed_at, model, metadata, body) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (principal, kind, object_id, created_at, int(now), model, _text(metadata), orjson.dumps(body)),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def find(connection: sqlite3.Connection, principal: str, kind: Kind, object_id: str) -> ObjectRow | None:
    """An object by its id."""
    row = connection.execute(
        "SELECT position, id, created_at, metadata, body FROM objects WHERE principal = ? AND kind = ? AND id = ?",
        (principal, kind, object_id),
    ).fetchone()
    return _object(row) if row else None


def remove(connection: sqlite3.Connection, principal: str, kind: Kind, object_id: str) -> bool:
    """Delete an object with its items and events; False: there is none."""
    done = connection.execute(
        "DELETE FROM objects WHERE principal = ? AND kind = ? AND id = ?", (principal, kind, object_id)
    )
    return done.rowcount > 0


def set_metadata(connection: sqlite3.Connection, position: int, metadata: dict[str, str], now: float) -> None:
    """Replace an object's metadata."""
    connection.execute(
        "UPDATE objects SET metadata = ?, changed_at = ? WHERE position = ?", (_text(metadata), int(now), position)
    )


def touch(connection: sqlite3.Connection, position: int, now: float) -> None:
    """Note that an object has changed now."""
    connection.execute("UPDATE objects SET changed_at = ? WHERE position = ?", (int(now), position))


def list_objects(
    connection: sqlite3.Connection,
    principal: str,
    kind: Kind,
    *,
    after: int | None,
    limit: int,
    order: Order,
    model: str | None,
    metadata: dict[str, str],
) -> tuple[list[ObjectRow], bool]:
    """Objects in the order of their arrival, and whether there are more.

    Args:
        connection: of a transaction.
        principal: whose.
        kind: of the objects.
        after: the position after which to begin, in the given order.
        limit: most objects to return.
        order: oldest or newest first.
        model: only of this model.
        metadata: only with all of these values.
    """
    where, values = ["principal = ?", "kind = ?"], [principal, kind]
    if model is not None:
        where.append("model = ?")
        values.append(model)
    for key, value in metadata.items():
        where.append("EXISTS (SELECT 1 FROM json_each(metadata) AS pair WHERE pair.key = ? AND pair.value = ?)")
        values += [key, value]
    bound, direction, extra = _paging(after, order)
    rows = connection.execute(
        f"SELECT position, id, created_at, metadata, body FROM objects WHERE {' AND '.join(where)}{bound} "
        f"ORDER BY position {direction} LIMIT ?",
        (*values, *extra, limit + 1),
    )
    found, has_more = _bounded(rows, limit)
    return [_object(row) for row in found], has_more


def add_items(connection: sqlite3.Connection, principal: str, owner: int, part: Part, items: Iterable[Json]) -> None:
    """Append items, each with an `id`, to a part of an object."""
    (first,) = connection.execute(
        "SELECT COALESCE(MAX(position) + 1, 0) FROM items WHERE owner = ? AND part = ?", (owner, part)
    ).fetchone()
    connection.executemany(
        "INSERT INTO items (owner, part, position, principal, id, body) VALUES (?, ?, ?, ?, ?, ?)",
        ((owner, part, first + n, principal, item["id"], orjson.dumps(item)) for n, item in enumerate(items)),
    )


def items_of(connection: sqlite3.Connection, owner: int, part: Part) -> list[Json]:
    """All items of a part of an object, in order."""
    rows = connection.execute("SELECT body FROM items WHERE owner = ? AND part = ? ORDER BY position", (owner, part))
    return [orjson.loads(body) for (body,) in rows]


def item_of(connection: sqlite3.Connection, owner: int, part: Part, item_id: str) -> Json | None:
    """One item of an object by its id."""
    row = connection.execute(
        "SELECT body FROM items WHERE owner = ? AND part = ? AND id = ?", (owner, part, item_id)
    ).fetchone()
    item: Json | None = orjson.loads(row[0]) if row else None
    return item


def remove_item(connection: sqlite3.Connection, owner: int, part: Part, item_id: str) -> bool:
    """Delete one item of an object; False: it has none of that id."""
    done = connection.execute("DELETE FROM items WHERE owner = ? AND part = ? AND id = ?", (owner, part, item_id))
    return done.rowcount > 0


def items_size(connection: sqlite3.Connection, owner: int) -> int:
    """Bytes of all items of an object."""
    (size,) = connection.execute("SELECT TOTAL(LENGTH(body)) FROM items WHERE owner = ?", (owner,)).fetchone()
    return int(size)


def page_of_items(
    connection: sqlite3.Connection, owner: int, part: Part, *, after: str | None, limit: int, order: Order
) -> Page | None:
    """Some items of a part of an object; None: it has no item with the id `after`."""
    start = None
    if after is not None:
        row = connection.execute(
            "SELECT position FROM items WHERE owner = ? AND part = ? AND id = ?", (owner, part, after)
        ).fetchone()
        if row is None:
            return None
        (start,) = row
    bound, direction, extra = _paging(start, order)
    rows = connection.execute(
        f"SELECT body FROM items WHERE owner = ? AND part = ?{bound} ORDER BY position {direction} LIMIT ?",
        (owner, part, *extra, limit + 1),
    )
    found, has_more = _bounded(rows, limit)
    return Page([orjson.loads(body) for (body,) in found], has_more)


def find_items(connection: sqlite3.Connection, principal: str, item_ids: Sequence[str]) -> dict[str, Json]:
    """The newest items of these ids in any object of the principal; unknown ids are left out."""
    found = {}
    for item_id in dict.fromkeys(item_ids):
        row = connection.execute(
            "SELECT body FROM items WHERE principal = ? AND id = ? ORDER BY owner DESC LIMIT 1", (principal, item_id)
        ).fetchone()
        if row:
            found[item_id] = orjson.loads(row[0])
    return found


def _bounded(rows: Iterable[tuple[Any, ...]], limit: int) -> tuple[list[tuple[Any, ...]], bool]:
    """The first rows, whose last column is the body, and whether there are more.

    There are at most `limit`, fewer if they are large, but always one.
    """
    taken: list[tuple[Any, ...]] = []
    num_bytes = 0
    for row in rows:
        num_bytes += len(row[-1])
        if len(taken) == limit or (taken and num_bytes > MAX_PAGE_BYTES):
            return taken, True
        taken.append(row)
    return taken, False


def _paging(after: int | None, order: Order) -> tuple[str, str, tuple[int, ...]]:
    """Condition, direction and values of a page that begins after a position."""
    comparison, direction = (">", "ASC") if order == "asc" else ("<", "DESC")
    return ("", direction, ()) if after is None else (f" AND position {comparison} ?", direction, (after,))


def _object(row: tuple[int, str, int, str, bytes]) -> ObjectRow:
    position, object_id, created_at, metadata, body = row
    return ObjectRow(position, object_id, created_at, orjson.loads(metadata), orjson.loads(body))


def _text(metadata: dict[str, str]) -> str:
    return orjson.dumps(metadata).decode()
