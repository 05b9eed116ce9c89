"""How an SQLite file of an older version becomes one of this version."""

import sqlite3
from collections.abc import Sequence


class NewerFileError(Exception):
    """The file was written by a newer version of Penstock."""


def migrate(connection: sqlite3.Connection, steps: Sequence[str]) -> None:
    """Bring an open file to this version.

    Args:
        connection: to the file.
        steps: one script a version: the first makes version 1 of an empty file, the next version 2 of that.

    Raises:
        NewerFileError: the file's version is not known here.
    """
    if _version(connection) == len(steps):
        return
    connection.execute("BEGIN IMMEDIATE")  # another process may be about to do the same
    try:
        version = _version(connection)
        if version > len(steps):
            raise NewerFileError(f"its version is {version}, and this Penstock knows versions up to {len(steps)}")
        for script in steps[version:]:
            for statement in script.split(";\n"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(steps)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)
