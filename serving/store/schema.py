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
# How much each principal has in the store, so that whoever has most makes room. A trigger is one line: see `migrate`.
# The rows of a deleted object are deleted after it, when it is not known any more whose they were.
_HOLDINGS = """
CREATE TABLE holdings (principal TEXT PRIMARY KEY, num_bytes INTEGER NOT NULL) STRICT;
INSERT INTO holdings SELECT principal, SUM(num_bytes) FROM (
    SELECT principal, length(body) + 512
    + COALESCE((SELECT length(body) FROM events WHERE owner = position), 0)
    + COALESCE((SELECT length(body) FROM requests WHERE owner = position), 0) AS num_bytes FROM objects
    UNION ALL SELECT principal, length(body) + 256 FROM items
) GROUP BY principal;
CREATE INDEX objects_of_principal_by_age ON objects (principal, changed_at, position);
CREATE TRIGGER object_comes AFTER INSERT ON objects BEGIN \
INSERT INTO holdings VALUES (NEW.principal, length(NEW.body) + 512) \
ON CONFLICT (principal) DO UPDATE SET num_bytes = num_bytes + excluded.num_bytes; END;
CREATE TRIGGER item_comes AFTER INSERT ON items BEGIN \
UPDATE holdings SET num_bytes = num_bytes + length(NEW.body) + 256 WHERE principal = NEW.principal; END;
CREATE TRIGGER events_come AFTER INSERT ON events BEGIN \
UPDATE holdings SET num_bytes = num_bytes + length(NEW.body) \
WHERE principal = (SELECT principal FROM objects WHERE position = NEW.owner); END;
CREATE TRIGGER request_comes AFTER INSERT ON requests BEGIN \
UPDATE holdings SET num_bytes = num_bytes + length(NEW.body) \
WHERE principal = (SELECT principal FROM objects WHERE position = NEW.owner); END;
CREATE TRIGGER object_goes BEFORE DELETE ON objects BEGIN \
UPDATE holdings SET num_bytes = num_bytes - length(OLD.body) - 512 \
- COALESCE((SELECT length(body) FROM events WHERE owner = OLD.position), 0) \
- COALESCE((SELECT length(body) FROM requests WHERE owner = OLD.position), 0) WHERE principal = OLD.principal; END;
CREATE TRIGGER item_goes AFTER DELETE ON items BEGIN \
UPDATE holdings SET num_bytes = num_bytes - length(OLD.body) - 256 WHERE principal = OLD.principal; END;
"""
STEPS = (_FIRST_TABLES, _REQUESTS, _HOLDINGS)
"""See `migration.migrate`."""
