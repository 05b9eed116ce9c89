"""Stored chat completions over HTTP, through the official client, which checks every answer against its types."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fake_engine import CHAT, Exchange, Front, error, open_front, until
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from starlette.datastructures import Headers

from penstock.serving.keys.doorkeeper import anybody
from penstock.serving.store.database import Database

MINE = {"authorization": "Bearer mine"}


def client(front: Front, key: str = "mine") -> AsyncOpenAI:
    return front.openai.with_options(api_key=key)


async def keep(front: Front, number: int, model: str = "m", **metadata: str) -> str:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": f"answer {number}", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    completion = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1000 + number,
        "model": model,
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}], "name": None},
    ]
    await front.store.chats.save(anybody(Headers(MINE)).id, completion, messages, metadata)
    return str(completion["id"])


async def test_a_completion_is_read_relabelled_and_deleted() -> None:
    async with open_front() as front:
        completions = client(front).chat.completions
        completion_id = await keep(front, 1, k="v")
        read = await completions.retrieve(completion_id)
        assert read.choices[0].message.content == "answer 1"
        assert read.metadata == {"k": "v"}  # type: ignore[attr-defined]
        updated = await completions.update(completion_id, metadata={"k": "w", "l": ""})
        assert updated.metadata == {"k": "w", "l": ""}  # type: ignore[attr-defined]
        assert await completions.retrieve(completion_id) == updated
        deleted = await completions.delete(completion_id)
        assert (deleted.id, deleted.object, deleted.deleted) == (completion_id, "chat.completion.deleted", True)
        for work in (
            completions.retrieve(completion_id),
            completions.update(completion_id, metadata={}),
            completions.delete(completion_id),
            completions.messages.list(completion_id),
        ):
            with pytest.raises(NotFoundError, match="store: true"):
                await work


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_kept_if_its_request_says_so(stream: bool) -> None:
    async with open_front() as front:
        completions = client(front).chat.completions
        wanted: dict[str, Any] = {
            "model": CHAT,
            "messages": [{"role": "user", "content": "hi"}],
            "n": 2,
            "logprobs": True,
        }
        if stream:
            async with await completions.create(**wanted, store=True, metadata={"k": "v"}, stream=True) as chunks:
                completion_id = [chunk async for chunk in chunks][0].id
        else:
            made = await completions.create(**wanted, store=True, metadata={"k": "v"})
            completion_id = made.id
        kept = await completions.retrieve(completion_id)
        assert [choice.message.content for choice in kept.choices] == ["hello world"] * 2
        assert kept.usage is not None and kept.usage.completion_tokens > 0
        assert stream or kept.model_dump(exclude={"metadata"}) == made.model_dump(exclude={"metadata"})
        assert kept.choices[0].logprobs is not None and kept.choices[0].logprobs.content
        assert [c.id async for c in await completions.list(metadata={"k": "v"})] == [completion_id]
        path = f"/v1/chat/completions/{completion_id}/messages"
        (message,) = (await front.http.get(path, headers=MINE)).json()["data"]
        assert (message["role"], message["content"], message["content_parts"]) == ("user", "hi", None)
        await completions.create(**wanted)
        await completions.create(**wanted, store=False)
        assert len((await completions.list()).data) == 1


async def test_a_client_that_leaves_leaves_nothing_behind() -> None:
    async with open_front() as front:
        front.engine.script = lambda job: [front.engine.say(job)[0], 30.0]
        body = {"model": CHAT, "messages": [{"role": "user", "content": "hi"}], "store": True, "stream": True}
        exchange = Exchange(front.app, "/v1/chat/completions", body)
        await until(lambda: b"content" in exchange.body)
        exchange.disconnect()
        await asyncio.gather(exchange.task, return_exceptions=True)
        await until(lambda: front.engine.num_jobs == 0)
        assert (await front.http.get("/v1/chat/completions")).json()["data"] == []


async def test_a_broken_store_refuses_before_the_work_and_does_not_spoil_what_is_done(tmp_path: Path) -> None:
    body = {"model": CHAT, "messages": [{"role": "user", "content": "hi"}], "store": True}
    async with open_front(database=Database(tmp_path / "s")) as front:
        await front.store.database.write(lambda c: c.execute("PRAGMA query_only = ON").fetchall())
        answer = await front.post("/v1/chat/completions", body)
        assert answer.json()["choices"][0]["message"]["content"] == "hello world"
    (tmp_path / "s").write_bytes(b"no database at all" * 100)
    async with open_front(database=Database(tmp_path / "s")) as front:
        error(await front.post("/v1/chat/completions", body), 503, "store_unavailable", None)
        assert front.engine.jobs == []


async def test_completions_are_listed_by_model_and_label_in_both_orders() -> None:
    async with open_front() as front:
        completions = client(front).chat.completions
        for number in range(5):
            await keep(front, number, model="ab"[number % 2], parity=str(number % 2), **{'odd "key"': "x"})

        async def listed(**query: Any) -> list[str]:
            return [completion.id[-1] async for completion in await completions.list(**query)]

        assert await listed() == await listed(limit=2) == list("01234")
        assert await listed(order="desc", limit=2) == list("43210")
        assert await listed(after="chatcmpl-2") == list("34")
        assert await listed(after="chatcmpl-2", order="desc") == list("10")
        assert await listed(model="b") == list("13")
        assert await listed(metadata={"parity": "0"}, limit=1) == list("024")
        assert await listed(metadata={"parity": "0", 'odd "key"': "x"}) == list("024")
        assert await listed(metadata={"parity": "0"}, model="b") == await listed(metadata={"other": "0"}) == []
        page = (await front.http.get("/v1/chat/completions?limit=2", headers=MINE)).json()
        assert {k: page[k] for k in page.keys() - {"data"}} == {
            "object": "list",
            "first_id": "chatcmpl-0",
            "last_id": "chatcmpl-1",
            "has_more": True,
        }
        with pytest.raises(BadRequestError, match="last_id"):
            await completions.list(after="chatcmpl-9")


async def test_a_page_of_large_completions_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_front() as front:
        for number in range(5):
            await keep(front, number)
        monkeypatch.setattr("penstock.serving.store.objects.MAX_PAGE_BYTES", 600)
        page = (await front.http.get("/v1/chat/completions", headers=MINE)).json()
        assert (len(page["data"]), page["has_more"]) == (2, True)
        assert len([completion async for completion in await client(front).chat.completions.list()]) == 5
        monkeypatch.setattr("penstock.serving.store.objects.MAX_PAGE_BYTES", 1)
        assert len([completion async for completion in await client(front).chat.completions.list()]) == 5


async def test_messages_are_listed_with_their_parts() -> None:
    async with open_front() as front:
        completion_id = await keep(front, 1)
        path = f"/v1/chat/completions/{completion_id}/messages"
        page = (await front.http.get(path, headers=MINE)).json()
        # the official client's type has the role "assistant" only; OpenAI's documentation shows the others
        assert page["data"] == [
            {
                "id": "chatcmpl-1-0",
                "role": "system",
                "content": "be brief",
                "content_parts": None,
                "name": None,
                "refusal": None,
            },
            {
                "id": "chatcmpl-1-1",
                "role": "user",
                "content": "hi\nthere",
                "content_parts": [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}],
                "name": None,
                "refusal": None,
            },
        ]
        newest = (await front.http.get(f"{path}?order=desc&limit=1", headers=MINE)).json()
        assert (newest["first_id"], newest["has_more"]) == ("chatcmpl-1-1", True)
        rest = (await front.http.get(f"{path}?order=desc&after=chatcmpl-1-1", headers=MINE)).json()
        assert (rest["last_id"], rest["has_more"]) == ("chatcmpl-1-0", False)
        error(await front.http.get(f"{path}?after=x", headers=MINE), 400, "invalid_value", "after")


async def test_a_completion_of_one_key_does_not_exist_for_another() -> None:
    async with open_front() as front:
        completion_id = await keep(front, 1)
        other = client(front, "other").chat.completions
        for work in (
            other.retrieve(completion_id),
            other.update(completion_id, metadata={}),
            other.delete(completion_id),
            other.messages.list(completion_id),
        ):
            with pytest.raises(NotFoundError):
                await work
        assert (await other.list()).data == []
        assert len((await client(front).chat.completions.list()).data) == 1


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("limit=ten", "invalid_type", "limit"),
        ("metadata=x", "invalid_type", "metadata"),
        ("metadata[k]=x&metadata[k]=y", "duplicate_parameter", "metadata[k]"),
        ("metadata[k]=x&metadata=y", "duplicate_parameter", "metadata"),
        ("before=x", "unknown_parameter", "before"),
    ],
)
async def test_queries_are_checked(query: str, code: str, param: str) -> None:
    async with open_front() as front:
        error(await front.http.get(f"/v1/chat/completions?{query}", headers=MINE), 400, code, param)
