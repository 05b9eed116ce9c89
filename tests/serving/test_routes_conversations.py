"""Conversations over HTTP, through the official client, which checks every answer against its types."""

from typing import Any

import pytest
from agents import Agent, OpenAIConversationsSession, OpenAIResponsesModel, RunConfig, Runner
from fake_engine import CHAT, Front, error, open_front
from openai import AsyncOpenAI, BadRequestError, NotFoundError


def client(front: Front, key: str = "mine") -> AsyncOpenAI:
    return front.openai.with_options(api_key=key)


def user(text: str) -> Any:
    return {"type": "message", "role": "user", "content": text}


async def test_a_conversation_is_made_read_relabelled_and_deleted() -> None:
    async with open_front() as front:
        conversations = client(front).conversations
        made = await conversations.create(metadata={"topic": "x"})
        assert made.object == "conversation" and made.id.startswith("conv_") and made.created_at > 1_700_000_000
        assert await conversations.retrieve(made.id) == made
        updated = await conversations.update(made.id, metadata={"topic": "y"})
        assert updated.metadata == {"topic": "y"} and updated.id == made.id
        assert (await conversations.update(made.id, metadata=None)).metadata == {}
        deleted = await conversations.delete(made.id)
        assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "conversation.deleted", True)
        with pytest.raises(NotFoundError, match="not found"):
            await conversations.retrieve(made.id)


async def test_items_are_added_paged_read_and_deleted() -> None:
    async with open_front() as front:
        conversations = client(front).conversations
        made = await conversations.create(items=[user("0"), user("1")])
        added = await conversations.items.create(made.id, items=[user("2"), user("3"), user("4")])
        assert (added.object, added.has_more, len(added.data)) == ("list", False, 3)
        assert (added.first_id, added.last_id) == (added.data[0].id, added.data[-1].id)

        async def texts(**paging: Any) -> list[str]:
            return [item.content[0].text async for item in await conversations.items.list(made.id, **paging)]  # type: ignore[union-attr]

        assert await texts(order="asc", limit=2) == list("01234")
        assert await texts(limit=2) == list("43210")
        assert await texts(order="asc", after=added.data[0].id) == list("34")
        item = await conversations.items.retrieve(added.data[0].id, conversation_id=made.id)
        assert item == added.data[0]
        assert (await conversations.items.delete(item.id, conversation_id=made.id)).id == made.id
        assert await texts(order="asc") == list("0134")
        for again in (conversations.items.retrieve, conversations.items.delete):
            with pytest.raises(NotFoundError, match="Item"):
                await again(item.id, conversation_id=made.id)
        with pytest.raises(BadRequestError, match="last_id"):
            await conversations.items.list(made.id, after=item.id)


async def test_items_of_every_kind_come_back_in_forms_that_the_client_knows() -> None:
    async with open_front() as front:
        items: list[Any] = [
            {"role": "developer", "content": "be brief"},
            {
                "role": "assistant",
                "content": [{"type": "output_text", "text": "so"}, {"type": "refusal", "refusal": "no"}],
            },
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "done"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "raw"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "x"},
            {"type": "compaction", "encrypted_content": "abc"},
        ]
        conversations = client(front).conversations
        made = await conversations.create(items=items)
        listed = (await conversations.items.list(made.id, order="asc", include=["reasoning.encrypted_content"])).data
        assert [item.type for item in listed] == [item.get("type", "message") for item in items]
        assert listed[2].encrypted_content  # type: ignore[union-attr]
        for item in listed:
            await conversations.items.retrieve(item.id, conversation_id=made.id)


async def test_an_item_that_is_there_already_gets_another_id_and_a_reference_becomes_the_item() -> None:
    async with open_front() as front:
        openai = client(front)
        response = await openai.responses.create(model=CHAT, input="hi")
        item_id = response.output[0].id
        assert item_id is not None
        reference: Any = {"type": "item_reference", "id": item_id}
        made = await openai.conversations.create(items=[reference, reference])
        first, second = (await openai.conversations.items.list(made.id, order="asc")).data
        assert first.id == item_id and second.id != item_id
        assert first.content[0].text == second.content[0].text == "hello world"  # type: ignore[union-attr]
        unknown: Any = {"type": "item_reference", "id": "msg_unknown"}
        with pytest.raises(NotFoundError, match="msg_unknown"):
            await openai.conversations.create(items=[unknown])


async def test_the_agents_librarys_sessions_live_here() -> None:
    async with open_front() as front:
        openai = client(front)
        session = OpenAIConversationsSession(openai_client=openai)
        agent = Agent(name="a", instructions="be brief", model=OpenAIResponsesModel(CHAT, openai))
        for question in ("first", "second"):
            await Runner.run(agent, question, session=session, run_config=RunConfig(tracing_disabled=True))
        items: list[Any] = await session.get_items()
        texts = [item["content"][0]["text"] for item in items]
        assert texts == ["first", "hello world", "second", "hello world"]
        assert await session.get_items(limit=2) == items[2:]
        assert await session.pop_item() == items[-1]
        assert await session.get_items() == items[:-1]
        await session.clear_session()


async def test_a_conversation_of_one_key_does_not_exist_for_another() -> None:
    async with open_front() as front:
        mine, other = client(front).conversations, client(front, "other").conversations
        made = await mine.create(items=[user("secret")], metadata={"k": "v"})
        (item,) = (await mine.items.list(made.id)).data
        for work in (
            other.retrieve(made.id),
            other.update(made.id, metadata={}),
            other.delete(made.id),
            other.items.list(made.id),
            other.items.create(made.id, items=[user("x")]),
            other.items.retrieve(item.id, conversation_id=made.id),
            other.items.delete(item.id, conversation_id=made.id),
        ):
            with pytest.raises(NotFoundError, match="Conversation"):
                await work
        assert (await mine.retrieve(made.id)).metadata == {"k": "v"}
        assert len((await mine.items.list(made.id)).data) == 1


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("", {"items": [{"role": "user", "content": "x"}] * 21}, "array_above_max_length", "items"),
        ("", {"items": [{"type": "local_shell_call"}]}, "invalid_value", "items.0.type"),
        ("", {"items": [{"type": "compaction_trigger"}]}, "invalid_value", "items.0"),
        ("", {"metadata": {str(n): "" for n in range(17)}}, "object_above_max_properties", "metadata"),
        ("", {"metadata": {"k": "x" * 513}}, "string_above_max_length", "metadata.k"),
        ("", {"metadata": {"k" * 65: ""}}, "invalid_value", "metadata"),
        ("", {"metadata": {"k": 1}}, "invalid_type", "metadata.k"),
        ("", {"metadata": []}, "invalid_type", "metadata"),
        ("", {"title": "x"}, "unknown_parameter", "title"),
        ("/conv_1", {}, "missing_required_parameter", "metadata"),
        ("/conv_1/items", {}, "missing_required_parameter", "items"),
        ("/conv_1/items", {"items": []}, "empty_array", "items"),
    ],
)
async def test_bodies_are_checked(path: str, body: Any, code: str, param: str) -> None:
    async with open_front() as front:
        error(await front.post(f"/v1/conversations{path}", body), 400, code, param)


async def test_a_conversation_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_front() as front:
        front.store.database.max_record_bytes = 2000
        made = (await front.post("/v1/conversations", {})).json()
        body = {"items": [user("x" * 600)]}
        path = f"/v1/conversations/{made['id']}/items"
        assert [(await front.post(path, body)).status_code for _ in range(3)] == [200, 200, 413]
        error(await front.post(path, body), 413, "record_too_large", "conversation")
