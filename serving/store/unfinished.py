"""Background responses that are not finished: who makes them, and what it takes to make them from the beginning again.

A process that makes one holds a lease, which it renews. Whoever finds a lease expired may claim the response: its
process has died, or has let go of it in order to end.
"""

from dataclasses import dataclass
from sqlite3 import Connection

from . import objects
from .database import Database
from .objects import Json

_RELEASED = 0.0


@dataclass(frozen=True, slots=True)
class Lease:
    """Who makes an unfinished response, and until when nobody else may."""

    process: str
    """A name of the server process, new at each start."""
    until: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """What a response is an answer to."""

    body: bytes
    """The request's, as it came."""
    seed: int
    """Drawn for it when it was accepted; another run draws the same tokens with it."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """An unfinished response that nobody makes."""

    principal: str
    response_id: str
    model: str
    """As its client wrote it."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """An unfinished response that is this process's now."""

    principal: str
    response: Json
    """As it was before its first event."""
    input_items: list[Json]
    request: StoredRequest
    num_starts: int
    """How often its making has begun, this time included."""
    num_deaths: int
    """How many processes have died over it."""


class UnfinishedStore:
    """The unfinished background responses of a database; `ResponseStore.save` begins and ends them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> float:
        """Unix seconds, by the clock of the leases."""
        return self._database.clock()

    async def abandoned(self, limit: int) -> list[Abandoned]:
        """The oldest responses that may be claimed.

        Raises:
            ApiError: 503, the store cannot be used.
        """
        query = (
            "SELECT principal, id, model FROM objects JOIN running ON running.owner = position "
            "JOIN requests ON requests.owner = position WHERE lease_until < ? ORDER BY position LIMIT ?"
        )
        if not self._database.is_there():
            return []
        now = self.now()
        return await self._database.read(
            lambda connection: [Abandoned(*row) for row in connection.execute(query, (now, limit))]
        )

    async def claim(self, principal: str, response_id: str, lease: Lease) -> Claimed | None:
        """Take a response over; None: it is finished, gone, or somebody's by now.

        Raises:
            ApiError: 503, the store cannot be used.
        """

        def work(connection: Connection) -> Claimed | None:
            row = objects.find(connection, principal, "response", response_id)
            if row is None:
                return None
            leased = connection.execute("SELECT lease_until FROM running WHERE owner = ?", (row.position,)).fetchone()
            if leased is None or leased[0] >= self.now():
                return None
            counted = connection.execute(
                "UPDATE requests SET num_starts = num_starts + 1, num_deaths = num_deaths + ? WHERE owner = ? "
                "RETURNING body, seed, num_starts, num_deaths",
                (int(leased[0] != _RELEASED), row.position),
            ).fetchone()
            if counted is None:
                return None
            connection.execute(
                "UPDATE running SET process = ?, lease_until = ? WHERE owner = ?",
                (lease.process, lease.until, row.position),
            )
            body, seed, num_starts, num_deaths = counted
            items = objects.items_of(connection, row.position, "input")
            response = row.body | {"output": []}
            return Claimed(principal, response, items, StoredRequest(body, seed), num_starts, num_deaths)

        return await self._database.write(work)

    async def renew(self, lease: Lease) -> None:
        """Prolong the leases of a process.

        Raises:
            ApiError: 503, the store cannot be used.
        """
        update = "UPDATE running SET lease_until = ? WHERE process = ?"
        await self._database.write(lambda connection: connection.execute(update, (lease.until, lease.process)))

    async def release(self, process: str) -> None:
        """Let others claim what a process makes.

        Raises:
            ApiError: 503, the store cannot be used.
        """
        update = "UPDATE running SET lease_until = ? WHERE process = ?"
        await self._database.write(lambda connection: connection.execute(update, (_RELEASED, process)))

    async def release_one(self, principal: str, response_id: str) -> None:
        """Let others claim a response.

        Raises:
            ApiError: 503, the store cannot be used.
        """
        update = (
            "UPDATE running SET lease_until = ? WHERE owner IN "
            "(SELECT position FROM objects WHERE principal = ? AND kind = 'response' AND id = ?)"
        )
        values = (_RELEASED, principal, response_id)
        await self._database.write(lambda connection: connection.execute(update, values))


def begin(connection: Connection, position: int, lease: Lease, request: StoredRequest) -> None:
    """Note who makes a response that was just written, and from what."""
    connection.execute("INSERT INTO running VALUES (?, ?, ?)", (position, lease.process, lease.until))
    connection.execute("INSERT INTO requests VALUES (?, ?, ?, 1, 0)", (position, request.body, request.seed))


def is_anothers(connection: Connection, principal: str, response_id: str, process: str) -> bool:
    """Whether another process than this one makes a response."""
    row = connection.execute(
        "SELECT process FROM running JOIN objects ON position = owner "
        "WHERE principal = ? AND kind = 'response' AND id = ?",
        (principal, response_id),
    ).fetchone()
    return row is not None and row[0] != process


def can_go_on(connection: Connection, position: int, now: float) -> bool:
    """Whether an unfinished response will be finished: somebody makes it, or it can be made again."""
    leased = connection.execute(
        "SELECT 1 FROM running WHERE owner = ? AND lease_until >= ?", (position, now)
    ).fetchone()
    again = connection.execute("SELECT 1 FROM requests WHERE owner = ?", (position,)).fetchone()
    return leased is not None or again is not None
