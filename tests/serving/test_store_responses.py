"""Stored responses: chains, items by id, and what one principal sees of another's."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock.serving.errors import ApiError
from penstock.serving.store import responses
from penstock.serving.store.database import Database
from penstock.serving.store.items import complete_item
from penstock.serving.store.store import Store, open_store
from penstock.serving.store.unfinished import Lease, StoredRequest

ME, OTHER = "me", "other"


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    store = open_store(Database(None))
    yield store
    await store.database.close()


def user(text: str) -> dict[str, Any]:
    return complete_item({"role": "user", "content": text, "id": f"msg_{text}"})


def answer(number: int, previous: int | None = None, **fields: Any) -> dict[str, Any]:
    item = {"id": f"msg_a{number}", "type": "message", "role": "assistant", "status": "completed", "content": []}
    return {
        "id": f"resp_{number}",
        "created_at": number,
        "model": "m",
        "status": "completed",
        "output": [item],
        "previous_response_id": None if previous is None else f"resp_{previous}",
        **fields,
    }


async def refusal(work: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await work
    return caught.value


async def test_a_chain_is_read_oldest_first(store: Store) -> None:
    for number in range(3):
        await store.responses.save(ME, answer(number, number - 1 if number else None), [user(f"q{number}")])
    ids = [item["id"] for item in await store.responses.history(ME, "resp_2")]
    assert ids == ["msg_q0", "msg_a0", "msg_q1", "msg_a1", "msg_q2", "msg_a2"]
    assert [item["id"] for item in await store.responses.history(ME, "resp_0")] == ["msg_q0", "msg_a0"]


async def test_a_chain_with_a_gap_is_refused_by_name(store: Store) -> None:
    for number in range(3):
        await store.responses.save(ME, answer(number, number - 1 if number else None), [user(f"q{number}")])
    await store.responses.delete(ME, "resp_0")
    error = await refusal(store.responses.history(ME, "resp_2"))
    assert (error.status, error.code, error.param) == (400, "previous_response_not_found", "previous_response_id")
    assert "'resp_0'" in error.message and "'resp_2'" in error.message
    assert "'resp_9'" in (await refusal(store.responses.history(ME, "resp_9"))).message


async def test_an_unfinished_response_has_no_history(store: Store) -> None:
    begins = (Lease("p", 1e12), StoredRequest(b"{}", 1))
    await store.responses.save(ME, answer(1, status="in_progress"), [], begins=begins)
    error = await refusal(store.responses.history(ME, "resp_1"))
    assert (error.status, error.code) == (400, "previous_response_not_finished")


async def test_a_history_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "MAX_HISTORY_BYTES", 2000)
    await store.responses.save(ME, answer(0), [user("x" * 700)])
    await store.responses.save(ME, answer(1, 0), [user("y" * 700)])
    assert len(await store.responses.history(ME, "resp_0")) == 2
    assert (await refusal(store.responses.history(ME, "resp_1"))).code == "context_length_exceeded"


async def test_items_are_found_by_id_wherever_they_are(store: Store) -> None:
    await store.responses.save(ME, answer(1), [user("q")])
    await store.conversations.create(ME, [user("talk")], {})
    found = await store.responses.find_items(ME, ["msg_q", "msg_a1", "msg_talk", "msg_unknown", "msg_q"])
    assert sorted(found) == ["msg_a1", "msg_q", "msg_talk"]
    assert found["msg_q"] == user("q")
    assert await store.responses.find_items(ME, []) == {}


async def test_nothing_is_anothers(store: Store) -> None:
    await store.responses.save(ME, answer(1), [user("q")], events=[b"{}"])
    conversation = (await store.conversations.create(ME, [user("talk")], {}))["id"]
    await store.chats.save(ME, {"id": "chatcmpl-1", "created": 1, "model": "m"}, [])
    r, c, h = store.responses, store.conversations, store.chats
    paging: dict[str, Any] = {"after": None, "limit": 10, "order": "asc"}
    for work in (
        r.get(OTHER, "resp_1"),
        r.events(OTHER, "resp_1"),
        r.delete(OTHER, "resp_1"),
        r.input_items(OTHER, "resp_1", **paging),
        c.get(OTHER, conversation),
        c.set_metadata(OTHER, conversation, {}),
        c.delete(OTHER, conversation),
        c.items(OTHER, conversation),
        c.append(OTHER, conversation, []),
        c.page(OTHER, conversation, **paging),
        c.get_item(OTHER, conversation, "msg_talk"),
        c.delete_item(OTHER, conversation, "msg_talk"),
        h.get(OTHER, "chatcmpl-1"),
        h.set_metadata(OTHER, "chatcmpl-1", {}),
        h.delete(OTHER, "chatcmpl-1"),
        h.messages(OTHER, "chatcmpl-1", **paging),
    ):
        assert (await refusal(work)).status == 404
    assert (await refusal(r.history(OTHER, "resp_1"))).code == "previous_response_not_found"
    assert await r.find_items(OTHER, ["msg_q", "msg_a1", "msg_talk"]) == {}
    assert (await h.page(OTHER, **paging)).items == []
    assert (await refusal(h.page(OTHER, after="chatcmpl-1", limit=1, order="asc"))).param == "after"
    # the same id may be another's too
    await store.responses.save(OTHER, answer(1, model="theirs"), [])
    assert (await r.get(ME, "resp_1"))["model"] == "m"
    await r.delete(OTHER, "resp_1")
    assert len(await r.history(ME, "resp_1")) == 2


def test_items_get_what_clients_leave_out() -> None:
    plain = complete_item({"role": "assistant", "content": "hi", "id": None})
    assert plain.pop("id").startswith("msg_")
    assert plain == {
        "role": "assistant",
        "content": [{"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}],
        "type": "message",
        "status": "completed",
    }
    call = complete_item({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"})
    assert call.pop("id").startswith("fc_") and call["status"] == "completed"
    thought = complete_item({"type": "reasoning", "id": "rs_1", "content": None, "encrypted_content": "x"})
    assert thought == {"type": "reasoning", "id": "rs_1", "encrypted_content": "x", "summary": []}
    assert complete_item(thought) == thought
