"""Responses in the making: recorded, followed, cancelled, stopped, and what the store has of them afterwards."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from fake_engine import until

from penstock.serving.errors import ApiError
from penstock.serving.handlers import background, leases
from penstock.serving.handlers.background import NUMBERS_OF_A_START, ResponseRuns
from penstock.serving.handlers.recording import Recording
from penstock.serving.handlers.response_run import ResponseRun
from penstock.serving.store.database import Database
from penstock.serving.store.store import open_store
from penstock.serving.store.unfinished import StoredRequest

ME, OTHER = "me", "other"
REQUEST = StoredRequest(b'{"input": "hi"}', -7)


class Source:
    """A response of a few words, whose next event waits until the test lets it come."""

    def __init__(self, name: str = "resp_1", words: tuple[str, ...] = ("a", "b"), **fields: Any) -> None:
        self.go = asyncio.Event()
        self.words = words
        self.closed = False
        self.fail: Exception | None = None
        self.input_items = [{"type": "message", "role": "user", "content": [], "id": f"msg_in_{name}"}]
        self.response: dict[str, Any] = {
            "id": name,
            "object": "response",
            "created_at": 1_700_000_000,
            "status": "queued",
            "model": "m",
            "output": [],
            "error": None,
            "store": True,
            **fields,
        }

    async def events(self) -> AsyncGenerator[dict[str, Any]]:
        number = -1

        def event(kind: str, **values: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            return {"type": kind, "sequence_number": number} | values

        item = {"type": "message", "id": f"msg_{self.response['id']}", "role": "assistant", "content": []}
        running = self.response | {"status": "in_progress"}
        try:
            yield event("response.created", response=self.response)
            yield event("response.in_progress", response=running)
            for word in self.words:
                await self.go.wait()
                if self.fail:
                    raise self.fail
                yield event("response.output_text.delta", delta=word)
            yield event("response.output_item.done", item=item)
            yield event("response.completed", response=running | {"status": "completed", "output": [item]})
        finally:
            await self.close()

    async def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def opened(path: Path | None = None, **options: Any) -> AsyncIterator[ResponseRuns]:
    runs = ResponseRuns(open_store(Database(path, **options)))
    try:
        yield runs
    finally:
        await runs.close()
        await runs.store.database.close()


async def begin(
    runs: ResponseRuns, source: Source, *, store: bool = True, stream: bool = True, background: bool = False
) -> ResponseRun:
    return await runs.start(source, ME, store=store, stream=stream, background=REQUEST if background else None)


async def collect(frames: AsyncGenerator[bytes]) -> list[dict[str, Any]]:
    text = b"".join([framed async for framed in frames]).decode()
    events = []
    for framed in text.split("\n\n")[:-1]:
        kind, data = framed.split("\n")
        events.append(orjson.loads(data.removeprefix("data: ")))
        assert kind == f"event: {events[-1]['type']}"
    return events


async def test_a_stream_is_stored_before_its_end_is_told_and_can_be_read_again_from_any_event() -> None:
    async with opened() as runs:
        source = Source()
        run = await begin(runs, source)
        source.go.set()
        events = await collect(run.stream())
        assert [event["sequence_number"] for event in events] == list(range(6))
        stored = await runs.store.responses.get(ME, "resp_1")
        assert stored == events[-1]["response"] == run.response
        recorded = Recording.of(await runs.store.responses.events(ME, "resp_1"))
        for after in range(-1, 7):
            assert await collect(recorded.follow(after)) == events[after + 1 :]


async def test_many_follow_a_running_response_from_where_they_like() -> None:
    async with opened() as runs:
        source = Source(words=tuple("abcdefgh"))
        run = await begin(runs, source, background=True)
        early = [asyncio.create_task(collect(run.recording.follow(after))) for after in (-1, 0, 4, 100)]
        await until(lambda: run.recording.num_events == 2)
        source.go.set()
        events, *rest = await asyncio.gather(*early)
        assert len(events) == 12
        assert rest == [events[1:], events[5:], []]


async def test_events_that_are_not_kept_are_forgotten_when_they_are_read() -> None:
    async with opened() as runs:
        source = Source(words=tuple("abcdefgh"))
        run = await begin(runs, source, store=False)
        frames = run.stream()
        num_first = (await anext(frames)).count(b"\n\n")
        assert run.recording.num_events == 0
        source.go.set()
        rest = await collect(frames)
        assert [event["sequence_number"] for event in rest] == list(range(num_first, 12))
        assert run.recording.num_events == 0


async def test_events_too_large_to_store_are_left_out() -> None:
    async with opened(max_bytes=2**20) as runs:
        noise = tuple(random.Random(n).randbytes(3000).hex() for n in range(60))
        source = Source(words=noise)
        source.go.set()
        run = await begin(runs, source)
        last = (await collect(run.stream()))[-1]
        assert last["response"]["store"] is True
        assert await runs.store.responses.events(ME, "resp_1") == []
        assert (await runs.store.responses.get(ME, "resp_1"))["status"] == "completed"


async def test_an_answer_that_is_not_stored_leaves_no_trace() -> None:
    async with opened() as runs:
        source = Source()
        source.go.set()
        run = await begin(runs, source, store=False)
        assert runs.find(ME, "resp_1") is None
        assert (await run.result())["status"] == "completed"
        with pytest.raises(ApiError, match="not found"):
            await runs.store.responses.get(ME, "resp_1")


async def test_nothing_of_it_touches_the_disk(tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as runs:
        source = Source()
        source.go.set()
        await (await begin(runs, source, store=False)).result()
    assert list(tmp_path.iterdir()) == []


async def test_a_background_response_outlives_its_client_and_is_nobody_elses() -> None:
    async with opened() as runs:
        source = Source()
        run = await begin(runs, source, background=True)
        assert (await runs.store.responses.get(ME, "resp_1"))["status"] == "queued"
        client = asyncio.create_task(collect(run.stream()))
        await until(lambda: run.response["status"] == "in_progress")
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)
        assert runs.find(ME, "resp_1") is run
        assert runs.find(OTHER, "resp_1") is None
        source.go.set()
        await until(lambda: runs.find(ME, "resp_1") is None)
        assert (await runs.store.responses.get(ME, "resp_1"))["status"] == "completed"
        assert source.closed


@pytest.mark.parametrize("streamed", [True, False])
async def test_another_response_ends_with_its_client_and_keeps_what_there_was(streamed: bool) -> None:
    async with opened() as runs:
        source = Source()
        run = await begin(runs, source, stream=streamed)
        client = asyncio.create_task(collect(run.stream()) if streamed else run.result())  # type: ignore[arg-type]
        await until(lambda: run.response["status"] == "in_progress")
        client.cancel()
        await until(lambda: runs.find(ME, "resp_1") is None)
        assert source.closed
        assert (await runs.store.responses.get(ME, "resp_1"))["status"] == "cancelled"
        kinds = [orjson.loads(event)["type"] for event in await runs.store.responses.events(ME, "resp_1")]
        assert kinds == (["response.created", "response.in_progress", "response.incomplete"] if streamed else [])


async def test_cancelling_ends_the_work_and_every_stream() -> None:
    async with opened() as runs:
        source = Source()
        run = await begin(runs, source, background=True)
        reader = asyncio.create_task(collect(run.recording.follow()))
        await until(lambda: run.recording.num_events == 2)
        cancelled = await run.cancel()
        assert source.closed and cancelled["status"] == "cancelled" and cancelled["error"] is None
        assert await runs.store.responses.get(ME, "resp_1") == cancelled
        last = (await reader)[-1]
        assert (last["type"], last["sequence_number"], last["response"]) == ("response.incomplete", 2, cancelled)
        assert await run.cancel() == cancelled


async def test_it_may_be_cancelled_before_it_begins() -> None:
    async with opened() as runs:
        source = Source()
        run = await begin(runs, source, background=True)
        assert (await run.cancel())["status"] == "cancelled"
        assert source.closed
        assert (await runs.store.responses.get(ME, "resp_1"))["status"] == "cancelled"


async def test_a_source_that_breaks_fails_the_response_and_says_nothing_of_the_reason() -> None:
    async with opened() as runs:
        source = Source()
        source.fail = KeyError("secret")
        run = await begin(runs, source)
        source.go.set()
        last = (await collect(run.stream()))[-1]
        assert last["type"] == "response.failed" and last["response"]["error"]["code"] == "server_error"
        assert "secret" not in str(last)
        assert (await runs.store.responses.get(ME, "resp_1"))["status"] == "failed"


async def test_a_server_that_stops_leaves_its_background_responses_to_the_next(tmp_path: Path) -> None:
    async with opened(tmp_path / "s") as runs:
        run = await begin(runs, Source(), background=True)
        client = asyncio.create_task(collect(run.recording.follow()))
        await until(lambda: run.recording.num_events == 2)
        assert await runs.claim(ME, "resp_1") is None
        runs.stop_background()
        with pytest.raises(ApiError, match="made again when the server is back") as caught:
            await client
        assert (caught.value.status, caught.value.code) == (503, "server_draining")
        kept = await begin(runs, Source("resp_2"))
        runs.stop_background()
    assert kept.response["status"] == "cancelled"
    async with opened(tmp_path / "s") as runs:
        assert (await runs.store.responses.get(ME, "resp_1"))["status"] == "queued"
        (abandoned,) = await runs.store.unfinished.abandoned(9)
        assert (abandoned.principal, abandoned.response_id, abandoned.model) == (ME, "resp_1", "m")
        claimed = await runs.claim(ME, "resp_1")
        assert claimed is not None and claimed.response == Source().response and claimed.request == REQUEST
        assert [item["id"] for item in claimed.input_items] == ["msg_in_resp_1"]
        assert (claimed.num_starts, claimed.num_deaths) == (2, 0)
        source = Source()
        source.go.set()
        events = await collect(runs.resume(claimed, source).recording.follow(5))
        assert [event["sequence_number"] for event in events] == [NUMBERS_OF_A_START + n for n in range(6)]
        assert events[0]["type"] == "response.created"
        assert (await runs.store.responses.get(ME, "resp_1"))["status"] == "completed"
        assert await runs.store.unfinished.abandoned(9) == [] and await runs.claim(ME, "resp_1") is None


async def test_a_process_that_was_taken_for_dead_does_not_spoil_what_another_makes(tmp_path: Path) -> None:
    now = 1000.0
    async with opened(tmp_path / "s", clock=lambda: now) as slept, opened(tmp_path / "s", clock=lambda: now) as runs:
        conversation = await runs.store.conversations.create(ME, [], {})
        early = Source(words=("early",), conversation={"id": conversation["id"]})
        run = await begin(slept, early, background=True)
        assert await runs.claim(ME, "resp_1") is None
        now += leases.LEASE_SECONDS + 1
        assert await slept.claim(ME, "resp_1") is None, "it makes it still"
        claimed = await runs.claim(ME, "resp_1")
        assert claimed is not None and claimed.num_deaths == 1
        late = Source(words=("late",), conversation={"id": conversation["id"]})
        again = runs.resume(claimed, late)
        early.go.set()
        await until(lambda: slept.find(ME, "resp_1") is None)
        assert run.response["status"] == "completed"
        assert (await runs.store.responses.get(ME, "resp_1"))["status"] == "queued"
        late.go.set()
        await until(lambda: runs.find(ME, "resp_1") is None)
        assert (await runs.store.responses.get(ME, "resp_1")) == again.response
        assert len(await runs.store.conversations.items(ME, conversation["id"])) == 2


async def test_leases_are_renewed_while_their_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_RENEWAL_INTERVAL", 0.001)
    now = 1000.0
    async with opened(clock=lambda: now) as runs:
        await begin(runs, Source(), background=True)
        now += 1000

        async def leased_until() -> float:
            (row,) = await runs.store.database.read(lambda c: c.execute("SELECT lease_until FROM running").fetchall())
            return float(row[0])

        async with asyncio.timeout(5):
            while await leased_until() < now:
                await asyncio.sleep(0.001)


async def test_there_is_a_limit_to_background_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MAX_BACKGROUND", 2)
    async with opened() as runs:
        first = await begin(runs, Source("resp_1"), background=True)
        await begin(runs, Source("resp_2"), background=True)
        with pytest.raises(ApiError, match="2 responses in the background") as caught:
            await begin(runs, Source("resp_3"), background=True)
        assert (caught.value.status, caught.value.headers["retry-after"]) == (429, "5")
        await first.cancel()
        await begin(runs, Source("resp_3"), background=True)


async def test_one_principal_cannot_have_all_background_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MAX_BACKGROUND_OF_ONE", 1)
    async with opened() as runs:
        await begin(runs, Source("resp_1"), background=True)
        with pytest.raises(ApiError, match="1 of your responses") as caught:
            await begin(runs, Source("resp_2"), background=True)
        assert caught.value.status == 429
        await runs.start(Source("resp_3"), OTHER, store=True, stream=False, background=REQUEST)


async def test_an_unusable_store_refuses_before_the_work_and_does_not_spoil_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with opened(path) as runs:
        source = Source()
        run = await begin(runs, source)
        await runs.store.database.write(lambda c: c.execute("PRAGMA query_only = ON").fetchall())
        source.go.set()
        last = (await collect(run.stream()))[-1]
        assert (last["type"], last["response"]["store"]) == ("response.completed", False)
    path.write_bytes(b"no database at all" * 100)
    async with opened(path) as runs:
        with pytest.raises(ApiError, match="store: false") as caught:
            await begin(runs, Source())
        assert caught.value.status == 503
        source = Source()
        source.go.set()
        assert (await (await begin(runs, source, store=False)).result())["status"] == "completed"


@pytest.mark.parametrize("store", [True, False])
async def test_a_conversation_gets_what_was_said(store: bool) -> None:
    async with opened() as runs:
        conversations = runs.store.conversations
        conversation = await conversations.create(ME, [], {})
        source = Source(conversation={"id": conversation["id"]})
        source.go.set()
        await (await begin(runs, source, store=store)).result()
        items = await conversations.items(ME, conversation["id"])
        assert [item["id"] for item in items] == ["msg_in_resp_1", "msg_resp_1"]
