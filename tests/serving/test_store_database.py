"""The database file: permissions, bounds, age, several processes, and every way in which it can be broken."""

import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.serving.errors import ApiError
from penstock.serving.store.database import Database
from penstock.serving.store.schema import STEPS
from penstock.serving.store.store import Store, open_store


@asynccontextmanager
async def opened(path: Path | None, **options: Any) -> AsyncIterator[Store]:
    store = open_store(Database(path, **options))
    try:
        yield store
    finally:
        await store.database.close()


async def refusal(work: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await work
    return caught.value


def completion(number: int, padding: int = 0) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "created": number, "model": "m", "padding": "x" * padding}


async def ids(store: Store) -> list[str]:
    page = await store.chats.page("", after=None, limit=1000, order="asc")
    return [item["id"] for item in page.items]


async def test_the_file_appears_when_it_is_needed_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "home" / "state.sqlite3"
    async with opened(path) as store:
        assert not path.parent.exists()
        await store.chats.save("", completion(1), [])
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == ["state.sqlite3", "state.sqlite3-shm", "state.sqlite3-wal"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert [file.name for file in path.parent.iterdir()] == ["state.sqlite3"]


async def test_an_existing_file_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    path.touch(0o644)
    async with opened(path) as store:
        await store.database.check(0)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_what_is_written_is_there_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as store:
        await store.chats.save("me", completion(1), [{"role": "user", "content": "hi"}], {"k": "v"})
    async with opened(tmp_path / "s") as store:
        assert (await store.chats.get("me", "chatcmpl-1"))["metadata"] == {"k": "v"}


async def test_many_writers_in_two_processes_lose_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as one, opened(tmp_path / "s") as other:
        await asyncio.gather(
            *(
                store.chats.save("", completion(2 * n + which), [])
                for n in range(50)
                for which, store in ((0, one), (1, other))
            )
        )
        assert len(await ids(one)) == len(await ids(other)) == 100


async def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as store:

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO objects VALUES (1, '', 'chat', 'x', 1, 1, 'm', '{}', x'7b7d')")
            raise KeyError("on purpose")

        with pytest.raises(KeyError):
            await store.database.write(work)
        assert await ids(store) == []


async def test_the_oldest_make_room_and_the_file_stays_below_its_limit(tmp_path: Path) -> None:
    limit = 2**20
    async with opened(tmp_path / "s", max_bytes=limit) as store:
        for number in range(300):
            await store.chats.save("", completion(number, 20_000), [])
        kept = await ids(store)
        assert kept[-1] == "chatcmpl-299" and 20 < len(kept) < 60
        assert kept == [f"chatcmpl-{n}" for n in range(300 - len(kept), 300)]
    assert limit / 2 < (tmp_path / "s").stat().st_size <= limit


async def test_whoever_has_most_makes_room(tmp_path: Path) -> None:
    async with opened(tmp_path / "s", max_bytes=2**20) as store:
        for number in range(5):
            await store.chats.save("quiet", completion(number, 20_000), [{"role": "user", "content": "x" * 1000}])
        for number in range(200):
            await store.chats.save("greedy", completion(number, 20_000), [])
        assert len((await store.chats.page("quiet", after=None, limit=100, order="asc")).items) == 5
        kept = (await store.chats.page("greedy", after=None, limit=100, order="asc")).items
        assert kept[-1]["id"] == "chatcmpl-199" and len(kept) > 15


async def test_what_each_has_is_counted_until_it_is_gone(tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as store:

        async def holdings() -> dict[str, int]:
            return dict(await store.database.read(lambda c: c.execute("SELECT * FROM holdings").fetchall()))

        for principal in ("me", "other"):
            await store.chats.save(principal, completion(1, 10_000), [{"role": "user", "content": "x" * 5000}])
            conversation = await store.conversations.create(principal, [{"type": "message", "content": []}] * 3, {})
        before = await holdings()
        assert before["me"] == before["other"] > 15_000
        await store.chats.save("me", completion(1), [])
        assert 0 < (await holdings())["me"] < 5000
        await store.chats.delete("other", "chatcmpl-1")
        await store.conversations.delete("other", conversation["id"])
        assert (await holdings())["other"] == 0


async def test_a_lowered_limit_shrinks_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "s", max_bytes=2**23) as store:
        for number in range(100):
            await store.chats.save("", completion(number, 30_000), [])
    async with opened(tmp_path / "s", max_bytes=2**20) as store:
        await store.chats.save("", completion(100), [])
        assert (await ids(store))[-1] == "chatcmpl-100"
    assert (tmp_path / "s").stat().st_size <= 2**20


async def test_what_is_deleted_is_not_in_the_file_any_more(tmp_path: Path) -> None:
    secret = "a secret that nobody may find"
    async with opened(tmp_path / "s") as store:
        await store.chats.save("", completion(1), [{"role": "user", "content": secret}])
    assert secret.encode() in (tmp_path / "s").read_bytes()
    async with opened(tmp_path / "s") as store:
        await store.chats.delete("", "chatcmpl-1")
    assert secret.encode() not in (tmp_path / "s").read_bytes()


async def test_what_is_used_stays_longer(tmp_path: Path) -> None:
    now = 1000.0
    async with opened(None, max_age=500, clock=lambda: now) as store:
        for number in range(3):
            await store.chats.save("", completion(number), [])
        now = 1300
        await store.chats.set_metadata("", "chatcmpl-1", {"used": "yes"})
        now = 1600
        assert await ids(store) == ["chatcmpl-1"]
        now = 1900
        await store.chats.save("", completion(3), [])
        assert await ids(store) == ["chatcmpl-3"]


async def test_one_object_is_bounded() -> None:
    async with opened(None, max_bytes=2**20) as store:
        error = await refusal(store.chats.save("", completion(1, 200_000), []))
        assert (error.status, error.code) == (413, "record_too_large")
        assert "131072" in error.message
        assert await ids(store) == []


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database, though it is long enough to be one" * 100)


def newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    connection.close()


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "reason"), [(garbage, "not a database"), (newer, "version"), (a_folder, "directory")]
)
async def test_an_unusable_file_is_a_503_until_it_is_replaced(
    tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "s"
    spoil(path)
    async with opened(path) as store:
        for _ in range(2):
            error = await refusal(store.chats.save("", completion(1), []))
            assert (error.status, error.code) == (503, "store_unavailable")
            assert reason in error.message.lower() and "store: false" in error.message
            assert str(tmp_path) not in error.message
        path.rename(tmp_path / "away")
        await store.chats.save("", completion(1), [])
        assert await ids(store) == ["chatcmpl-1"]


async def test_a_file_damaged_while_open_is_a_503(tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as store:
        await store.chats.save("", completion(1), [])
    size = os.path.getsize(tmp_path / "s")
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:4096] + b"\xff" * (size - 4096))
    async with opened(tmp_path / "s") as store:
        assert (await refusal(store.chats.get("", "chatcmpl-1"))).status == 503


async def test_a_locked_file_is_a_503_and_no_harm_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.serving.store.database._BUSY_TIMEOUT", 0.01)
    async with opened(tmp_path / "s") as store:
        await store.chats.save("", completion(1), [])
        other = sqlite3.connect(tmp_path / "s", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        error = await refusal(store.chats.save("", completion(2), []))
        assert error.status == 503 and "locked" in error.message
        assert await ids(store) == ["chatcmpl-1"]  # readers do not wait for writers
        other.execute("ROLLBACK")
        other.close()
        await store.chats.save("", completion(2), [])
        assert await ids(store) == ["chatcmpl-1", "chatcmpl-2"]


async def test_a_full_disk_is_a_503_and_readers_go_on(tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as store:
        await store.chats.save("", completion(1), [])
        await store.database.write(lambda c: c.execute("PRAGMA max_page_count = 1").fetchall())
        error = await refusal(store.chats.save("", completion(2, 100_000), []))
        assert error.status == 503 and "full" in error.message
        assert await ids(store) == ["chatcmpl-1"]
