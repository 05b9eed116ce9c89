"""The tables of the store, and how a file of an older version becomes one of this version."""

import sqlite3

# An object is a response, a conversation or a chat completion; its items are its parts that have an id of their own.
# `position` orders the objects by arrival, and is what lists are paged by.
_FIRST_TABLES = """
CREATE TABLE objects (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    principal TEXT NOT NULL,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    model TEXT NOT NULL,
    metadata TEXT NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (principal, kind, id)
) STRICT;
CREATE INDEX objects_by_age ON objects (changed_at, position);

CREATE TABLE items (
    owner INTEGER NOT NULL REFERENCES objects (position) ON DELETE CASCADE,
    part TEXT NOT NULL,
    position INTEGER NOT NULL,
    principal TEXT NOT NULL,
    id TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (owner, part, position)
) STRICT;
CREATE INDEX items_by_id ON items (principal, id);
CREATE INDEX items_of_owner_by_id ON items (owner, id);

CREATE TABLE events (
    owner INTEGER PRIMARY KEY REFERENCES objects (position) ON DELETE CASCADE,
    body BLOB NOT NULL
) STRICT;

CREATE TABLE running (
    owner INTEGER PRIMARY KEY REFERENCES objects (position) ON DELETE CASCADE,
    process TEXT NOT NULL,
    lease_until REAL NOT NULL
) STRICT;
"""
_STEPS = (_FIRST_TABLES,)
"""One script a version: the first makes version 1 of an empty file, the next will make version 2 of that."""
VERSION = len(_STEPS)


class NewerFileError(Exception):
    """The file was written by a newer version of Penstock."""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an open file to this version.

    Raises:
        NewerFileError: the file's version is not known here.
    """
    if _version(connection) == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")  # another process may be about to do the same
    try:
        version = _version(connection)
        if version > VERSION:
            raise NewerFileError(f"its version is {version}, and this Penstock knows versions up to {VERSION}")
        for script in _STEPS[version:]:
            for statement in script.split(";\n"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)
