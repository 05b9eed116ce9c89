"""The tables of the store."""

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
# Of background responses that are not finished: they are made from the beginning when their process has ended.
_REQUESTS = """
CREATE TABLE requests (
    owner INTEGER PRIMARY KEY REFERENCES objects (position) ON DELETE CASCADE,
    body BLOB NOT NULL,
    seed INTEGER NOT NULL,
    num_starts INTEGER NOT NULL,
    num_deaths INTEGER NOT NULL
) STRICT;
"""
STEPS = (_FIRST_TABLES, _REQUESTS)
"""See `migration.migrate`."""
