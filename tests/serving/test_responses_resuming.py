"""Background responses that a process leaves unfinished are made again by the next: the same request, seed and id."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fake_engine import CHAT, Front, open_front, until

from penstock.scheduler.messages import Submit
from penstock.serving.handlers.background import NUMBERS_OF_A_START
from penstock.serving.handlers.responses import resuming
from penstock.serving.handlers.responses.resuming import MAX_DEATHS, Resumption
from penstock.serving.principal import Principal
from penstock.serving.store.database import Database
from penstock.serving.store.unfinished import Lease, StoredRequest

BODY = {"model": CHAT, "input": "hi", "background": True, "temperature": 1.0, "max_output_tokens": 40}


@asynccontextmanager
async def process(path: Path) -> AsyncIterator[tuple[Front, Resumption]]:
    """An API process that ends as a drained one does."""
    async with open_front(database=Database(path)) as front:
        yield front, Resumption(front.app.state.services, lambda name: Principal(name, weight=3.0))


async def leave_unfinished(path: Path, **fields: Any) -> tuple[dict[str, Any], Submit]:
    """A background response whose process ends, and the job that it has run."""
    async with process(path) as (front, _):
        front.engine.script = lambda job: [*front.engine.say(job)[:2], 60.0]
        made = (await front.post("/v1/responses", BODY | fields)).json()
        assert made["status"] in ("queued", "in_progress")
        await until(lambda: len(front.engine.jobs) == 1)
        await front.runs.close()
        return made, front.engine.job


async def finished(front: Front, response_id: str) -> dict[str, Any]:
    """The response when it is not being made any more."""
    async with asyncio.timeout(5):
        while True:
            response: dict[str, Any] = (await front.http.get(f"/v1/responses/{response_id}")).json()
            if response["status"] not in ("queued", "in_progress"):
                return response
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("seed", [None, 7])
async def test_the_next_process_gives_the_answer_that_would_have_been_given(tmp_path: Path, seed: int | None) -> None:
    fields = {} if seed is None else {"seed": seed}
    made, first_job = await leave_unfinished(tmp_path / "s", **fields)
    async with process(tmp_path / "s") as (front, resumption):
        waiting = (await front.http.get(f"/v1/responses/{made['id']}")).json()
        assert (waiting["status"], waiting["created_at"]) == ("queued", made["created_at"])
        listed = (await front.http.get(f"/v1/responses/{made['id']}/input_items")).json()["data"]
        await resumption.look()
        following = asyncio.create_task(front.http.get(f"/v1/responses/{made['id']}?stream=true&starting_after=4"))
        response = await finished(front, made["id"])
        assert response["status"] == "completed" and response["created_at"] == made["created_at"]
        assert response["output"][0]["content"][0]["text"] == front.engine.text
        assert front.engine.job.sampling == first_job.sampling
        assert front.engine.job.prompt_token_ids == first_job.prompt_token_ids
        assert front.engine.job.weight == 3.0
        assert seed is None or first_job.sampling.seed == seed
        events = [json.loads(line[6:]) for line in (await following).text.splitlines() if line.startswith("data: ")]
        assert [event["sequence_number"] for event in events] == [NUMBERS_OF_A_START + n for n in range(len(events))]
        assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
        assert (await front.http.get(f"/v1/responses/{made['id']}/input_items")).json()["data"] == listed
        await resumption.look()
        assert len(front.engine.jobs) == 1, "it is finished"


async def test_what_cannot_be_made_here_is_left_to_others(tmp_path: Path) -> None:
    made, _ = await leave_unfinished(tmp_path / "s")
    async with process(tmp_path / "s") as (front, resumption):
        del front.registry._cards[CHAT]
        await resumption.look()
        assert front.runs.num_background == 0
    async with process(tmp_path / "s") as (front, resumption):
        resumption.start()
        assert (await finished(front, made["id"]))["status"] == "completed"
        await resumption.close()


async def test_a_process_that_drains_takes_nothing_up(tmp_path: Path) -> None:
    await leave_unfinished(tmp_path / "s")
    async with process(tmp_path / "s") as (front, resumption):
        front.app.state.services.drain.begin()
        resumption.start()
        await asyncio.sleep(0.05)
        assert front.runs.num_background == 0
        await resumption.close()


async def test_a_request_that_is_wrong_by_now_fails_by_name(tmp_path: Path) -> None:
    async with process(tmp_path / "s") as (front, _):
        first = (await front.post("/v1/responses", {"model": CHAT, "input": "one"})).json()
    made, _ = await leave_unfinished(tmp_path / "s", previous_response_id=first["id"])
    async with process(tmp_path / "s") as (front, resumption):
        assert (await front.http.delete(f"/v1/responses/{first['id']}")).status_code == 200
        await resumption.look()
        response = await finished(front, made["id"])
        assert response["status"] == "failed" and first["id"] in response["error"]["message"]
        again = (await front.http.get(f"/v1/responses/{made['id']}?stream=true")).text
        assert again.count("event: ") == 1 and "response.failed" in again


async def test_a_server_that_is_full_at_its_start_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "_RETRY_SECONDS", 0.001)
    made, _ = await leave_unfinished(tmp_path / "s")
    async with process(tmp_path / "s") as (front, resumption):
        front.engine.mark_dead("it has not begun")
        await resumption.look()
        await asyncio.sleep(0.05)
        assert (await front.http.get(f"/v1/responses/{made['id']}")).json()["status"] == "queued"
        front.engine._death = None
        assert (await finished(front, made["id"]))["status"] == "completed"


async def test_a_response_that_outlives_too_many_processes_is_given_up(tmp_path: Path) -> None:
    now = 1_700_000_000.0
    request = StoredRequest(json.dumps(BODY).encode(), 1)
    async with open_front(database=Database(tmp_path / "s", clock=lambda: now)) as front:
        head = {"id": "resp_1", "created_at": 5, "model": CHAT, "status": "queued", "output": [], "background": True}
        await front.store.responses.save("", head, [], begins=(Lease("dead", now - 1), request))
        for _ in range(MAX_DEATHS - 1):
            assert await front.store.unfinished.claim("", "resp_1", Lease("dead", now - 1)) is not None
        claimed = await front.store.unfinished.claim("", "resp_1", Lease("dead", now - 1))
        assert claimed is not None and claimed.num_deaths == MAX_DEATHS
        await Resumption(front.app.state.services, Principal).look()
        await until(lambda: front.runs.num_background == 0)
        response = await front.store.responses.get("", "resp_1")
        assert response["status"] == "failed" and "not tried again" in response["error"]["message"]
        assert front.engine.jobs == []


async def test_a_response_whose_key_was_revoked_is_not_made(tmp_path: Path) -> None:
    made, _ = await leave_unfinished(tmp_path / "s")
    async with process(tmp_path / "s") as (front, _):
        await Resumption(front.app.state.services, lambda name: None).look()
        response = await finished(front, made["id"])
        assert response["status"] == "failed" and "not valid any more" in response["error"]["message"]
        assert front.engine.jobs == []


async def test_it_waits_until_nobody_speaks_in_its_conversation(tmp_path: Path) -> None:
    async with process(tmp_path / "s") as (front, _):
        conversation = (await front.post("/v1/conversations", {})).json()["id"]
    made, _ = await leave_unfinished(tmp_path / "s", conversation=conversation)
    async with process(tmp_path / "s") as (front, resumption):
        with suppress(InterruptedError), front.runs.turn_in("", conversation):
            await resumption.look()
            assert front.runs.num_background == 0
            raise InterruptedError  # ends the turn
        await resumption.look()
        assert (await finished(front, made["id"]))["status"] == "completed"
        items = (await front.http.get(f"/v1/conversations/{conversation}/items?order=asc")).json()["data"]
        assert [item["role"] for item in items] == ["user", "assistant"]
