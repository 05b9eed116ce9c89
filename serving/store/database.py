"""One SQLite file, used from one thread of its own: opened when first needed, bounded in size and age, never fatal.

Whatever is wrong with the file (locked, full, damaged, unreadable) becomes a 503 for the request that needs it. Other
requests go on, and the next one tries again.
"""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ApiError
from .migration import NewerFileError, migrate
from .schema import STEPS

_log = logging.getLogger(__name__)
T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
"""What to do inside a transaction, in the database's thread."""
Addition = tuple[Work[Any], int]
"""What to do inside a transaction, and how many bytes it adds."""

DEFAULT_MAX_BYTES = 2**30
DEFAULT_MAX_AGE = 30 * 24 * 3600.0
TOO_LARGE = 413
"""Status of the refusal of an object that is larger than the store takes."""
MAX_RECORD_BYTES = 64 * 2**20
"""Of one object with all that belongs to it; a smaller store takes an eighth of itself at most."""
_BUSY_TIMEOUT = 5.0  # seconds to wait for another process's transaction
_PAGE_BYTES = 4096
_WAL_BYTES = 64 * 2**20
_SPARE_BYTES = 64 * _PAGE_BYTES  # for what a transaction touches beside its record
_AGING_INTERVAL = 60.0
_PRUNE_BATCH = 16
_HAS_MOST = (
    "SELECT principal FROM holdings WHERE EXISTS (SELECT 1 FROM objects WHERE objects.principal = holdings.principal) "
    "ORDER BY num_bytes DESC LIMIT 1"
)


class Database:
    """Runs transactions one after the other.

    Args:
        path: the file; None: in memory, for as long as this object lives.
        max_bytes: the file's content is kept below it by removing what changed longest ago of the principal that has
            most.
        max_age: seconds that an object is kept after its last change.
        clock: Unix seconds.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_age: float = DEFAULT_MAX_AGE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.clock = clock
        self.max_record_bytes = min(MAX_RECORD_BYTES, max_bytes // 8)
        self._path = path
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._next_aging = 0.0

    def is_there(self) -> bool:
        """Whether there is anything to read."""
        return self._path is None or self._path.exists()

    async def read(self, work: Work[T]) -> T:
        """The result of `work`, which sees one state of the file and changes nothing.

        Raises:
            ApiError: 503, the file cannot be used; or what `work` raises.
        """
        return await self._submit(work, "BEGIN", 0)

    async def write(self, work: Work[T], num_bytes: int = 0) -> T:
        """The result of `work`, which takes effect as a whole or not at all.

        Args:
            work: what to do.
            num_bytes: how much it adds.

        Raises:
            ApiError: 413, more than one record may have; 503, the file cannot be used; or what `work` raises.
        """
        self._check_size(num_bytes)
        return await self._submit(work, "BEGIN IMMEDIATE", num_bytes)

    async def prepare(self, work: Callable[[], T]) -> T:
        """The result of `work`, which encodes what will be written: that would hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def check(self, num_bytes: int) -> None:
        """See that the file can be opened, and that it may take an object of `num_bytes`.

        Raises:
            ApiError: 413, that is too large; 503, the file cannot be used.
        """
        self._check_size(num_bytes)
        await self._submit(lambda connection: None, "BEGIN", 0)

    async def close(self) -> None:
        """Finish what has been asked for and close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._forget_connection)
        self._thread.shutdown()

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self.max_record_bytes:
            raise ApiError(
                f"The object has {num_bytes} bytes, and the store takes at most {self.max_record_bytes} for one. "
                "Send less, or send store: false.",
                status=TOO_LARGE,
                code="record_too_large",
            )

    async def _submit(self, work: Work[T], begin: str, num_bytes: int) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work, begin, num_bytes)

    # What follows runs in the database's thread.

    def _run(self, work: Work[T], begin: str, num_bytes: int) -> T:
        try:
            if self._connection is None:
                self._connection = self._open()
            self._drop_old(self._connection)
            return self._transact(self._connection, work, begin, num_bytes)
        except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
            raise  # our own mistake, and no fault of the file
        except (sqlite3.DatabaseError, OSError, NewerFileError) as error:
            _log.error("the store %s cannot be used: %s", self._path, error)
            if self._path is not None and not _is_passing(error):  # it may be mended or replaced: look at it anew
                self._forget_connection()
            raise _unavailable(error) from error

    def _transact(self, connection: sqlite3.Connection, work: Work[T], begin: str, num_bytes: int) -> T:
        connection.execute(begin)
        try:
            if num_bytes:
                self._make_room(connection, num_bytes)
            result = work(connection)
            connection.execute("COMMIT")
            return result
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                connection.execute("ROLLBACK")
            raise

    def _open(self) -> sqlite3.Connection:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite gives its -wal and -shm files the permissions of the file itself.
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            self._path.chmod(0o600)
        connection = sqlite3.connect(self._path or ":memory:", timeout=_BUSY_TIMEOUT, isolation_level=None)
        try:
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _forget_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _drop_old(self, connection: sqlite3.Connection) -> None:
        """Remove what is too old, once in a while."""
        now = self.clock()
        if now < self._next_aging:
            return
        self._next_aging = now + _AGING_INTERVAL
        with suppress(sqlite3.OperationalError):  # another process writes, and removes the same
            connection.execute("DELETE FROM objects WHERE changed_at < ?", (now - self._max_age,))
            connection.execute("DELETE FROM holdings WHERE num_bytes <= 0")

    def _make_room(self, connection: sqlite3.Connection, num_bytes: int) -> None:
        """Remove objects until the record fits, with its share of indexes and of pages that are not full.

        They are the oldest of whoever has most, so that nobody pushes out more than his own share of others' objects.
        """
        limit = self._max_bytes - 2 * num_bytes - _SPARE_BYTES
        removed = True
        while removed and _used_bytes(connection) > limit:
            oldest = (
                f"SELECT position FROM objects WHERE principal = ({_HAS_MOST}) ORDER BY changed_at, position LIMIT ?"
            )
            done = connection.execute(f"DELETE FROM objects WHERE position IN ({oldest})", (_PRUNE_BATCH,))
            removed = done.rowcount > 0
        if _pages(connection) * _PAGE_BYTES > self._max_bytes:  # the limit has been lowered
            for _ in range(_free_pages(connection)):  # Python's sqlite3 takes only the first step of this pragma
                connection.execute("PRAGMA incremental_vacuum(1)")


def _prepare(connection: sqlite3.Connection) -> None:
    """Set up a connection, and a file that is new."""
    patience = time.monotonic() + _BUSY_TIMEOUT
    while True:
        try:
            (num_pages,) = connection.execute("PRAGMA page_count").fetchone()
            if num_pages == 0:
                connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:  # another process makes the same file: SQLite does not wait here
            if not _is_passing(error) or time.monotonic() > patience:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last answers, not the file
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what is deleted is not left in the file's free space
    migrate(connection, STEPS)


def _used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the file that hold something; what has been freed is used again before the file grows."""
    return (_pages(connection) - _free_pages(connection)) * _PAGE_BYTES


def _pages(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    return int(pages)


def _free_pages(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(pages)


def _is_passing(error: Exception) -> bool:
    """Whether the file is sound, but another process holds it or the disk is full."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the rest says which kind of busy
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)


def _unavailable(error: Exception) -> ApiError:
    # An OSError's own words have the path in them, which is nobody's business.
    reason = error.strerror or "input/output error" if isinstance(error, OSError) else str(error)
    return ApiError(
        f"The server's store cannot be used now: {reason}. Send store: false, or tell the server's operator.",
        status=503,
        code="store_unavailable",
    )
