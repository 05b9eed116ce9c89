"""Unfinished responses in the store: who may claim one, how deaths are counted, and files of the first version."""

import sqlite3
from pathlib import Path
from typing import Any

import orjson

from penstock.serving.store import schema
from penstock.serving.store.database import Database
from penstock.serving.store.store import open_store
from penstock.serving.store.unfinished import Lease, StoredRequest

ME = "me"


def queued(name: str = "resp_1") -> dict[str, Any]:
    return {"id": name, "created_at": 5, "model": "m", "status": "queued", "output": [], "background": True}


async def test_one_process_of_many_gets_an_abandoned_response_and_deaths_are_counted(tmp_path: Path) -> None:
    now = 1000.0
    first, second = (open_store(Database(tmp_path / "s", clock=lambda: now)) for _ in range(2))
    assert await first.unfinished.abandoned(9) == []
    assert not (tmp_path / "s").exists(), "looking for responses makes no file"
    begins = (Lease("a", now + 20), StoredRequest(b"asked", -(2**63)))
    await first.responses.save(ME, queued(), [], begins=begins)
    now += 15
    await first.unfinished.renew(Lease("a", now + 20))
    await first.unfinished.renew(Lease("stranger", now + 2000))
    now += 15
    assert await second.unfinished.abandoned(9) == []
    assert await second.unfinished.claim(ME, "resp_1", Lease("b", now + 20)) is None
    now += 6
    assert await second.unfinished.claim("other", "resp_1", Lease("b", now + 20)) is None
    claimed = await second.unfinished.claim(ME, "resp_1", Lease("b", now + 20))
    assert claimed is not None and claimed.request == StoredRequest(b"asked", -(2**63))
    assert (claimed.response, claimed.num_starts, claimed.num_deaths) == (queued(), 2, 1)
    assert await first.unfinished.claim(ME, "resp_1", Lease("a", now + 20)) is None
    await second.unfinished.release("a")
    assert await first.unfinished.abandoned(9) == []
    await second.unfinished.release("b")
    claimed = await first.unfinished.claim(ME, "resp_1", Lease("a", now + 20))
    assert claimed is not None and (claimed.num_starts, claimed.num_deaths) == (3, 1)
    await first.unfinished.release_one(ME, "resp_1")
    assert [found.response_id for found in await second.unfinished.abandoned(9)] == ["resp_1"]
    for store in (first, second):
        await store.database.close()


async def test_a_file_of_the_first_version_is_brought_up_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    old = sqlite3.connect(path, isolation_level=None)
    old.executescript(schema._FIRST_TABLES)
    old.execute("PRAGMA user_version = 1")
    for position, (name, status) in enumerate((("resp_done", "completed"), ("resp_lost", "in_progress")), start=1):
        body = queued(name) | {"status": status}
        del body["output"]
        values = (position, ME, "response", name, 5, 5, "m", "{}", orjson.dumps(body))
        old.execute("INSERT INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    old.execute("INSERT INTO running VALUES (2, 'a process of the old version', 6)")
    old.close()
    store = open_store(Database(path, max_age=1e12))
    assert (await store.responses.get(ME, "resp_done"))["status"] == "completed"
    assert await store.unfinished.abandoned(9) == [], "its request is not there"
    lost = await store.responses.get(ME, "resp_lost")
    assert (lost["status"], lost["error"]["code"]) == ("failed", "server_error")
    await store.database.close()
    again = sqlite3.connect(path)
    assert again.execute("PRAGMA user_version").fetchone() == (len(schema.STEPS),)
    bodies, overhead = again.execute("SELECT SUM(length(body)), COUNT(*) * 512 FROM objects").fetchone()
    assert again.execute("SELECT * FROM holdings").fetchall() == [(ME, bodies + overhead)]
    again.close()
