"""What every key has used, in one SQLite file for all API processes; used from one thread.

Each call is one transaction, about 25 microseconds when no other process is within one. Libraries that limit rates
keep a sliding window with a row for each unit in a file, so that a prompt of 100,000 tokens would be as many rows, or
they need a server; here a key is one row.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ..principal import Principal
from .bucket import Bucket
from .presence import Presence
from .standing import DAY, NOTHING, Refusal, Standing, Usage

Clock = Callable[[], int]
"""Unix microseconds."""
_PATIENCE = 5.0
"""Seconds to wait for another process's transaction."""
LEDGER_FOLDER = "limits"
"""In the home."""
_FILE = "ledger.sqlite3"
_VERSION = 1
_SCHEMA = """
CREATE TABLE accounts (
    principal TEXT PRIMARY KEY,
    at INTEGER NOT NULL,
    requests_taken INTEGER NOT NULL,
    tokens_taken INTEGER NOT NULL,
    num_requests INTEGER NOT NULL,
    num_prompt_tokens INTEGER NOT NULL,
    num_output_tokens INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE places (
    process TEXT NOT NULL,
    principal TEXT NOT NULL,
    num_requests INTEGER NOT NULL,
    PRIMARY KEY (process, principal)
) WITHOUT ROWID;
"""


def microseconds() -> int:
    """The clock of all processes of a machine."""
    return time.time_ns() // 1000


class Ledger:
    """The accounts of all keys; the file is opened when it is first needed.

    Every method may raise sqlite3.Error or OSError: the file cannot be used now.

    Args:
        folder: of the file and of the marks of the processes that use it; None: in memory, for one process.
        clock: tells the time.
    """

    def __init__(self, folder: Path | None, clock: Clock = microseconds) -> None:
        self.clock = clock
        self._folder = folder
        self._presence: Presence | None = None
        self._connection: sqlite3.Connection | None = None
        self._places: dict[str, int] = {}
        """Requests in flight here, by principal. What the file says of this process follows from it, and not the other
        way round, so that a place whose end could not be written is not lost."""

    def enter(self, principal: Principal, unwritten: Usage = NOTHING) -> tuple[Standing, Refusal | None]:
        """Begin a request, if its key may; it has a place until `leave`.

        Args:
            principal: whose request it is.
            unwritten: what it has used and the ledger does not know yet.
        """
        with self._transaction() as connection:
            standing = self._read(connection, principal).use(unwritten)
            refusal = standing.refuse_request()
            if refusal is not None and refusal.what == "requests in flight" and self._remove_dead(connection):
                standing = replace(standing, num_in_flight=self._num_in_flight(connection, principal.id))
                refusal = standing.refuse_request()
            num_here = self._places.get(principal.id, 0)
            if refusal is None:
                standing = standing.use(Usage(num_requests=1))
                if principal.limits.max_in_flight:
                    standing = replace(standing, num_in_flight=standing.num_in_flight + 1)
                    num_here += 1
            if principal.limits.max_in_flight:
                self._write_places(connection, principal.id, num_here)
            _write(connection, principal.id, standing)
        self._places[principal.id] = num_here
        return standing, refusal

    def leave(self, principal_id: str) -> None:
        """End a request that had a place."""
        num_here = self._places[principal_id] = self._places[principal_id] - 1
        with self._transaction() as connection:
            self._write_places(connection, principal_id, num_here)

    def admit(
        self, principal: Principal, num_tokens: int, unwritten: Usage = NOTHING
    ) -> tuple[Standing, Refusal | None]:
        """Take the tokens of a prompt, if its key has them; the other arguments are those of `enter`."""
        with self._transaction() as connection:
            standing = self._read(connection, principal).use(unwritten)
            refusal = standing.refuse_tokens(num_tokens)
            if refusal is None:
                standing = standing.use(Usage(num_prompt_tokens=num_tokens))
            _write(connection, principal.id, standing)
        return standing, refusal

    def charge(self, used: Mapping[Principal, Usage]) -> dict[str, Standing]:
        """Add what was used without asking before, over the limits if need be; returns the accounts by id."""
        standings = {}
        with self._transaction() as connection:
            for principal, usage in used.items():
                standing = self._read(connection, principal).use(usage)
                _write(connection, principal.id, standing)
                standings[principal.id] = standing
        return standings

    def usage_today(self) -> dict[str, Usage]:
        """What each principal has used since midnight, by id."""
        midnight = self.clock() // DAY * DAY
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT principal, num_requests, num_prompt_tokens, num_output_tokens FROM accounts WHERE at >= ?",
                (midnight,),
            )
            return {principal: Usage(*counts) for principal, *counts in rows}

    def close(self) -> None:
        """Give back every place of this process, and the file."""
        if self._connection is not None:
            with suppress(sqlite3.Error), self._transaction() as connection:
                connection.execute("DELETE FROM places WHERE process = ?", (self._process,))
            self._connection.close()
            self._connection = None
        if self._presence is not None:
            self._presence.close()
            self._presence = None

    @property
    def _process(self) -> str:
        return self._presence.name if self._presence is not None else ""

    def _read(self, connection: sqlite3.Connection, principal: Principal) -> Standing:
        """A key's account as it is now, by the limits that it has now."""
        now = self.clock()
        row = connection.execute(
            "SELECT at, requests_taken, tokens_taken, num_requests, num_prompt_tokens, num_output_tokens"
            " FROM accounts WHERE principal = ?",
            (principal.id,),
        ).fetchone()
        num_in_flight = self._num_in_flight(connection, principal.id) if principal.limits.max_in_flight else 0
        if row is None:
            empty = Bucket(0, now)
            return Standing(principal.limits, now, empty, empty, num_in_flight=num_in_flight)
        at, requests, tokens, *used = row
        then = Standing(principal.limits, at, Bucket(requests, at), Bucket(tokens, at), Usage(*used), num_in_flight)
        return then.after(now)

    def _num_in_flight(self, connection: sqlite3.Connection, principal_id: str) -> int:
        total = "SELECT coalesce(sum(num_requests), 0) FROM places WHERE principal = ? AND process != ?"
        (num_elsewhere,) = connection.execute(total, (principal_id, self._process)).fetchone()
        return self._places.get(principal_id, 0) + int(num_elsewhere)

    def _write_places(self, connection: sqlite3.Connection, principal_id: str, count: int) -> None:
        connection.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", (self._process, principal_id, count))

    def _remove_dead(self, connection: sqlite3.Connection) -> int:
        """Remove the places of processes that died; returns how many had some."""
        if self._presence is None:
            return 0
        names = [name for (name,) in connection.execute("SELECT DISTINCT process FROM places")]
        dead = [(name,) for name in names if not self._presence.is_alive(name)]
        connection.executemany("DELETE FROM places WHERE process = ?", dead)
        return len(dead)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self._connection is None:
            self._connection = self._open()
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                connection.execute("ROLLBACK")
            raise

    def _open(self) -> sqlite3.Connection:
        if self._folder is None:
            connection = _connect(":memory:")
        else:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            connection = _connect(str(self._folder / _FILE))
        try:
            _prepare(connection)
            if self._folder is not None:
                self._presence = self._presence or Presence(self._folder)
                for name in self._presence.others():
                    self._presence.is_alive(name)  # removes the marks of the dead
                self._remove_dead(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def usage_today(folder: Path, clock: Clock = microseconds) -> dict[str, Usage]:
    """What each principal has used since midnight in UTC, by id; for a process that serves nobody."""
    if not (folder / _FILE).exists():
        return {}
    ledger = Ledger(folder, clock)
    try:
        return ledger.usage_today()
    finally:
        ledger.close()


def _connect(database: str) -> sqlite3.Connection:
    if database != ":memory:":  # SQLite gives its other files the permissions of this one
        os.close(os.open(database, os.O_CREAT | os.O_RDWR, 0o600))
    return sqlite3.connect(database, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)


def _prepare(connection: sqlite3.Connection) -> None:
    """Set up a connection, and a file that is new."""
    patience = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:  # another process makes the same file: SQLite does not wait here
            if time.monotonic() > patience:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last moments, not the file
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute("COMMIT")


def _write(connection: sqlite3.Connection, principal_id: str, standing: Standing) -> None:
    used = standing.today
    connection.execute(
        "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            principal_id,
            standing.now,
            standing.requests.taken,
            standing.tokens.taken,
            used.num_requests,
            used.num_prompt_tokens,
            used.num_output_tokens,
        ),
    )
