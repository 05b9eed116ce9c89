"""The file of API keys, keys.sqlite3 in the home: written by `penstock keys`, read by every API process.

It is a file of its own beside the store: the store drops what is old, may be deleted, and changes with every answer,
while this one is seldom written and must not lose a row. It keeps SQLite's plain journal, so that it can also be
mounted where the server may not write. Revoked keys stay in it: who once had keys does not open up by revoking them.
"""

import os
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import astuple, fields
from pathlib import Path
from typing import cast

from ..principal import Limits, Scope
from ..store.migration import NewerFileError, migrate
from .key import Key

_STEPS = (
    """
CREATE TABLE keys (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    digest TEXT NOT NULL UNIQUE,
    prefix TEXT NOT NULL,
    name TEXT NOT NULL,
    scopes TEXT NOT NULL,
    weight REAL NOT NULL,
    requests_per_minute INTEGER NOT NULL,
    tokens_per_minute INTEGER NOT NULL,
    tokens_per_day INTEGER NOT NULL,
    max_in_flight INTEGER NOT NULL,
    created_at REAL NOT NULL,
    last_used_at REAL,
    revoked_at REAL
) STRICT;
CREATE UNIQUE INDEX keys_by_name ON keys (name) WHERE revoked_at IS NULL;
""",
)
KEY_FILE = "keys.sqlite3"
"""Its name in the home."""
_LIMITS = tuple(field.name for field in fields(Limits))
_COLUMNS = ("digest", "prefix", "name", "scopes", "weight", *_LIMITS, "created_at", "last_used_at", "revoked_at")
_BUSY_TIMEOUT = 5.0  # seconds to wait for another process's transaction


class KeyFileError(Exception):
    """The file cannot be used, or not for that; the message is for people."""


class KeyFile:
    """The keys of one home. Made and used from one thread at a time.

    Args:
        path: the file, which need not be there until a key is added.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._version = 0

    def read(self) -> list[Key]:
        """All keys, revoked ones too, in the order in which they were added; none if there is no file.

        Raises:
            KeyFileError: the file cannot be read.
        """
        try:
            if self._connection is None:
                if not self._path.exists():
                    return []
                self._open()
            self._version = self._data_version()
            rows = self._run(f"SELECT {', '.join(_COLUMNS)} FROM keys ORDER BY position")
        except (sqlite3.Error, OSError, NewerFileError) as error:
            raise self._unusable(error) from error
        return [_key(row) for row in rows]

    def changed(self) -> bool:
        """Whether others have written to the file, or put another in its place, since it was last read.

        Raises:
            KeyFileError: the file cannot be read, or has gone.
        """
        try:
            if self._connection is None:
                return self._path.exists()
            stat = self._path.stat()
            if (stat.st_dev, stat.st_ino) != self._identity:
                self.close()
                return True
            return self._data_version() != self._version
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def add(self, key: Key) -> None:
        """Add a key; the file is made if need be.

        Raises:
            KeyFileError: another key has its name; the file cannot be written.
        """
        values = (key.digest, key.prefix, key.name, " ".join(sorted(key.scopes)), key.weight, *astuple(key.limits))
        values += (key.created_at, key.last_used_at, key.revoked_at)
        try:
            if self._connection is None:
                self._open()
            self._run(f"INSERT INTO keys ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(values))})", values)
        except sqlite3.IntegrityError as error:
            raise KeyFileError(
                f"there is a key called {key.name!r}; revoke it with `penstock keys revoke`, or choose another name"
            ) from error
        except (sqlite3.Error, OSError, NewerFileError) as error:
            raise self._unusable(error) from error

    def revoke(self, key: Key, now: float) -> None:
        """Revoke a key of `read`.

        Raises:
            KeyFileError: the file cannot be written.
        """
        self._write("UPDATE keys SET revoked_at = ? WHERE digest = ?", [(now, key.digest)])

    def note_use(self, digests: Iterable[str], now: float) -> None:
        """Keep that keys of `read` were used; if the file has gone since, there is nowhere to keep it.

        Raises:
            KeyFileError: the file cannot be written.
        """
        if self._connection is not None:
            self._write("UPDATE keys SET last_used_at = ? WHERE digest = ?", [(now, digest) for digest in digests])

    def close(self) -> None:
        """Let the file go; a later call opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _open(self) -> None:
        with suppress(FileExistsError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        stat = self._path.stat()
        connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            migrate(connection, _STEPS)
        except BaseException:
            connection.close()
            raise
        self._connection, self._identity = connection, (stat.st_dev, stat.st_ino)

    def _run(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        assert self._connection is not None, "the file is not open"
        return self._connection.execute(statement, values).fetchall()

    def _write(self, statement: str, rows: list[tuple[float, str]]) -> None:
        assert self._connection is not None, "the file is not open"
        try:
            self._connection.execute("BEGIN IMMEDIATE")  # one transaction, which costs a disk's time, for all rows
            try:
                self._connection.executemany(statement, rows)
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:  # the connection stays: what cannot be written can perhaps be read
            raise KeyFileError(f"the keys in {self._path} cannot be changed: {error}") from error

    def _data_version(self) -> int:
        """Changes with every transaction of another connection."""
        ((version,),) = self._run("PRAGMA data_version")
        return cast(int, version)

    def _unusable(self, error: Exception) -> KeyFileError:
        self.close()
        return KeyFileError(f"the keys in {self._path} cannot be used: {error}")


def _key(row: tuple[object, ...]) -> Key:
    values = dict(zip(_COLUMNS, row, strict=True))
    limits = Limits(**{name: cast(int, values.pop(name)) for name in _LIMITS})
    scopes = frozenset(cast(list[Scope], cast(str, values.pop("scopes")).split()))
    return Key(**values, scopes=scopes, limits=limits)  # type: ignore[arg-type]  # the columns are STRICT
