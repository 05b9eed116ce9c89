"""Responses after POST over HTTP, mostly through the official client, which checks every answer against its types."""

import asyncio
from typing import Any

import pytest
from fake_engine import CHAT, Exchange, Front, error, open_front, until
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from penstock.serving.handlers.responses.answer import response_head
from penstock.serving.protocol.responses.body import ResponseBody
from penstock.serving.store.database import Database
from penstock.serving.store.unfinished import Lease, StoredRequest


def client(front: Front, key: str = "mine") -> AsyncOpenAI:
    return front.openai.with_options(api_key=key)


def slow(front: Front, seconds: float = 30.0) -> None:
    """Let the model pause after its first token."""

    def script(job: Any) -> Any:
        first, *rest = front.engine.say(job)
        return [first, seconds, *rest]

    front.engine.script = script


async def test_a_stored_response_is_read_as_it_was_answered_until_it_is_deleted() -> None:
    async with open_front() as front:
        openai = client(front)
        made = await openai.responses.create(model=CHAT, input="hi", metadata={"k": "v"})
        read = await openai.responses.retrieve(made.id)
        assert read.model_dump() == made.model_dump()
        assert read.output_text == "hello world" and read.metadata == {"k": "v"}
        await openai.responses.delete(made.id)
        with pytest.raises(NotFoundError, match="not found"):
            await openai.responses.retrieve(made.id)
        with pytest.raises(NotFoundError):
            await openai.responses.delete(made.id)


async def test_what_delete_says() -> None:
    async with open_front() as front:
        made = (await front.post("/v1/responses", {"model": CHAT, "input": "hi"})).json()
        deleted = await front.http.delete(f"/v1/responses/{made['id']}")
        assert deleted.json() == {"id": made["id"], "object": "response", "deleted": True}


async def test_a_response_that_is_not_stored_cannot_be_found() -> None:
    async with open_front() as front:
        openai = client(front)
        made = await openai.responses.create(model=CHAT, input="hi", store=False)
        with pytest.raises(NotFoundError):
            await openai.responses.retrieve(made.id)
        with pytest.raises(BadRequestError, match="previous_response_id|not found"):
            await openai.responses.create(model=CHAT, input="and now?", previous_response_id=made.id)


async def test_a_stream_is_read_again_from_any_event() -> None:
    async with open_front() as front:
        openai = client(front)
        async with await openai.responses.create(model=CHAT, input="hi", stream=True) as stream:
            events = [event async for event in stream]
        response_id = events[0].response.id  # type: ignore[union-attr]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        for after in range(-1, len(events) + 1):
            async with await openai.responses.retrieve(response_id, stream=True, starting_after=after) as again:
                assert [event.model_dump() async for event in again] == [e.model_dump() for e in events[after + 1 :]]


async def test_a_stream_that_was_none_is_not_read_again() -> None:
    async with open_front() as front:
        made = (await front.post("/v1/responses", {"model": CHAT, "input": "hi"})).json()
        message = error(await front.http.get(f"/v1/responses/{made['id']}?stream=true"), 400, "invalid_value", "stream")
        assert "background: true" in message
        slow(front)
        exchange = Exchange(front.app, "/v1/responses", {"model": CHAT, "input": "hi"})
        await until(lambda: len(front.runs._by_id) == 1)
        ((_, running),) = front.runs._by_id
        error(await front.http.get(f"/v1/responses/{running}?stream=true"), 400, "invalid_value", "stream")
        exchange.disconnect()
        await asyncio.gather(exchange.task, return_exceptions=True)


async def test_a_background_response_is_polled_until_it_is_done() -> None:
    async with open_front() as front:
        slow(front, 0.05)
        openai = client(front)
        made = await openai.responses.create(model=CHAT, input="hi", background=True)
        assert made.status == "queued" and made.output == []
        seen = set()
        async with asyncio.timeout(5):
            while (now := await openai.responses.retrieve(made.id)).status != "completed":
                seen.add(now.status)
                await asyncio.sleep(0.002)
        assert seen <= {"queued", "in_progress"}
        assert now.output_text == "hello world" and now.background


async def test_a_background_stream_is_left_and_resumed_while_it_runs() -> None:
    async with open_front() as front:
        front.engine.script = lambda job: [part for step in front.engine.say(job) for part in (step, 0.01)]
        openai = client(front)
        stream = await openai.responses.create(model=CHAT, input="hi", background=True, stream=True)
        seen = []
        async for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        response_id = seen[0].response.id  # type: ignore[union-attr]
        last = seen[-1].sequence_number
        async with await openai.responses.retrieve(response_id, stream=True, starting_after=last) as rest:
            seen += [event async for event in rest]
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        assert [event.type for event in seen[:3]] == ["response.created", "response.queued", "response.in_progress"]
        assert seen[-1].type == "response.completed"
        assert "".join(e.delta for e in seen if e.type == "response.output_text.delta") == "hello world"
        async with await openai.responses.retrieve(response_id, stream=True) as again:
            assert [event.model_dump() async for event in again] == [event.model_dump() for event in seen]


async def test_the_clients_own_helper_resumes_a_stream() -> None:
    async with open_front() as front:
        openai = client(front)
        async with openai.responses.stream(model=CHAT, input="hi", background=True) as stream:
            events = [event async for event in stream]
        response_id = events[0].response.id  # type: ignore[union-attr]
        async with openai.responses.stream(response_id=response_id, starting_after=4) as again:
            assert [event.sequence_number async for event in again] == list(range(5, len(events)))
            assert (await again.get_final_response()).output_text == "hello world"


async def test_a_background_response_is_cancelled_once_and_for_all() -> None:
    async with open_front() as front:
        slow(front)
        openai = client(front)
        made = await openai.responses.create(model=CHAT, input="hi", background=True)
        async with asyncio.timeout(5):
            while (await openai.responses.retrieve(made.id)).status != "in_progress":
                await asyncio.sleep(0.001)
        for _ in range(2):
            assert (await openai.responses.cancel(made.id)).status == "cancelled"
        assert front.engine.num_jobs == 0 and len(front.engine.cancelled) == 1
        assert (await openai.responses.retrieve(made.id)).status == "cancelled"


async def test_only_background_responses_can_be_cancelled() -> None:
    async with open_front() as front:
        openai = client(front)
        made = await openai.responses.create(model=CHAT, input="hi")
        with pytest.raises(BadRequestError, match="background: true"):
            await openai.responses.cancel(made.id)
        with pytest.raises(NotFoundError):
            await openai.responses.cancel("resp_unknown")


async def test_deleting_a_background_response_ends_it() -> None:
    async with open_front() as front:
        slow(front)
        openai = client(front)
        made = await openai.responses.create(model=CHAT, input="hi", background=True)
        await until(lambda: front.engine.num_jobs == 1)
        await openai.responses.delete(made.id)
        assert front.engine.num_jobs == 0
        with pytest.raises(NotFoundError):
            await openai.responses.retrieve(made.id)


async def test_a_client_that_leaves_takes_its_response_along() -> None:
    async with open_front() as front:
        slow(front)
        exchange = Exchange(front.app, "/v1/responses", {"model": CHAT, "input": "hi", "stream": True})
        await until(lambda: b"output_text.delta" in exchange.body)
        exchange.disconnect()
        await until(lambda: front.engine.num_jobs == 0)
        await asyncio.gather(exchange.task, return_exceptions=True)
        response_id = exchange.body.partition(b'"id":"')[2].partition(b'"')[0].decode()
        await until(lambda: front.runs.find("", response_id) is None)
        read = (await front.http.get(f"/v1/responses/{response_id}")).json()
        assert read["status"] == "cancelled"
        again = (await front.http.get(f"/v1/responses/{response_id}?stream=true")).content
        assert again.startswith(exchange.body) and again.count(b"event: response.incomplete") == 1


async def test_input_items_are_paged_in_both_orders() -> None:
    async with open_front() as front:
        openai = client(front)
        texts = [f"message {n}" for n in range(5)]
        made = await openai.responses.create(model=CHAT, input=[{"role": "user", "content": text} for text in texts])

        def text_of(item: Any) -> str:
            return str(item.content[0].text)

        newest = [text_of(i) async for i in await openai.responses.input_items.list(made.id, limit=2)]
        assert newest == texts[::-1]
        page = await openai.responses.input_items.list(
            made.id, limit=2, order="asc", include=["reasoning.encrypted_content"]
        )
        assert [text_of(item) for item in page.data] == texts[:2] and page.has_more
        rest = await openai.responses.input_items.list(made.id, order="asc", after=page.data[-1].id)
        assert [text_of(item) for item in rest.data] == texts[2:] and not rest.has_more
        with pytest.raises(BadRequestError, match="last_id"):
            await openai.responses.input_items.list(made.id, after="msg_unknown")


async def test_input_items_of_a_response_that_runs() -> None:
    async with open_front() as front:
        slow(front)
        openai = client(front)
        made = await openai.responses.create(model=CHAT, input="hi", background=True)
        (item,) = (await openai.responses.input_items.list(made.id)).data
        assert item.type == "message"
        with pytest.raises(BadRequestError, match="last_id"):
            await openai.responses.input_items.list(made.id, after="msg_unknown")
        await openai.responses.cancel(made.id)


async def test_items_of_every_kind_are_listed_in_forms_that_the_client_knows() -> None:
    async with open_front() as front:
        items: list[Any] = [
            {"role": "user", "content": [{"type": "input_text", "text": "go"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "other"},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "done"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "raw"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "x"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "so"}]},
            {"role": "user", "content": "and?"},
        ]
        made = await client(front).responses.create(model=CHAT, input=items, truncation="auto")
        listed = (await client(front).responses.input_items.list(made.id, order="asc")).data
        kinds = [item.type for item in listed]
        assert kinds == [item.get("type", "message") for item in items]
        assert len({item.id for item in listed}) == len(items)


async def test_a_turn_follows_another() -> None:
    async with open_front() as front:
        openai = client(front)
        first = await openai.responses.create(model=CHAT, input="first question")
        await openai.responses.create(model=CHAT, input="second question", previous_response_id=first.id)
        prompt = front.engine.tokenizer.decode(front.engine.jobs[-1].prompt_token_ids)  # type: ignore[attr-defined, union-attr]
        positions = [prompt.index(text) for text in ("first question", "hello world", "second question")]
        assert positions == sorted(positions)


async def test_a_conversation_remembers() -> None:
    async with open_front() as front:
        openai = client(front)
        conversation = await openai.conversations.create(items=[{"role": "user", "content": "remember blue"}])
        made = await openai.responses.create(model=CHAT, input="which colour?", conversation=conversation.id)
        assert made.conversation is not None and made.conversation.id == conversation.id
        items = [item async for item in await openai.conversations.items.list(conversation.id, order="asc")]
        texts = [item.content[0].text for item in items]  # type: ignore[union-attr]
        assert texts == ["remember blue", "which colour?", "hello world"]
        with pytest.raises(NotFoundError, match="Conversation"):
            await client(front, "other").responses.create(model=CHAT, input="hi", conversation=conversation.id)


async def test_one_response_at_a_time_is_made_in_a_conversation() -> None:
    async with open_front() as front:
        conversation = (await front.post("/v1/conversations", {})).json()["id"]
        body = {"model": CHAT, "input": "hi", "conversation": conversation}
        slow(front)
        running = (await front.post("/v1/responses", body | {"background": True})).json()["id"]
        said = error(await front.post("/v1/responses", body), 400, "conversation_locked", "conversation")
        assert conversation in said
        error(await front.post("/v1/responses", body | {"stream": True}), 400, "conversation_locked", "conversation")
        assert len(front.engine.jobs) == 1
        assert (await front.post(f"/v1/responses/{running}/cancel", {})).json()["status"] == "cancelled"
        error(await front.post("/v1/responses", body | {"model": "nobody"}), 404, "model_not_found", "model")
        front.engine.script = front.engine.say
        for streams in (True, False):
            assert (await front.post("/v1/responses", body | {"stream": streams})).status_code == 200


async def test_nothing_of_one_key_exists_for_another() -> None:
    async with open_front() as front:
        slow(front)
        mine, other = client(front), client(front, "other")
        running = await mine.responses.create(model=CHAT, input="hi", background=True)
        front.engine.script = front.engine.say
        done = await mine.responses.create(model=CHAT, input="hi")
        (item,) = (await mine.responses.input_items.list(done.id)).data
        for made in (running, done):
            for work in (
                other.responses.retrieve(made.id),
                other.responses.retrieve(made.id, stream=True),
                other.responses.cancel(made.id),
                other.responses.delete(made.id),
                other.responses.input_items.list(made.id),
            ):
                with pytest.raises(NotFoundError):
                    await work
            with pytest.raises(BadRequestError, match="not found"):
                await other.responses.create(model=CHAT, input="hi", previous_response_id=made.id)
        with pytest.raises(NotFoundError, match="Item"):
            await other.responses.create(model=CHAT, input=[{"type": "item_reference", "id": item.id}])
        assert (await mine.responses.cancel(running.id)).status == "cancelled"


@pytest.mark.parametrize(
    ("query", "code", "param", "says"),
    [
        ("stream=maybe", "invalid_type", "stream", "expected a boolean"),
        ("starting_after=3", "invalid_value", "starting_after", "stream=true"),
        ("stream=true&starting_after=x", "invalid_type", "starting_after", "expected an integer"),
        ("include=everything", "invalid_value", "include.0", "message.output_text.logprobs"),
        ("nonsense=1", "unknown_parameter", "nonsense", "no such parameter"),
        ("stream=true&stream=true", "duplicate_parameter", "stream", "once"),
        ("include=web_search_call.results&include[x]=1", "duplicate_parameter", "include[x]", "once"),
    ],
)
async def test_parameters_are_checked(query: str, code: str, param: str, says: str) -> None:
    async with open_front() as front:
        assert says in error(await front.http.get(f"/v1/responses/resp_1?{query}"), 400, code, param)


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("limit=0", "integer_below_min_value", "limit"),
        ("limit=101", "integer_above_max_value", "limit"),
        ("order=up", "invalid_value", "order"),
    ],
)
async def test_paging_is_checked(query: str, code: str, param: str) -> None:
    async with open_front() as front:
        error(await front.http.get(f"/v1/responses/resp_1/input_items?{query}"), 400, code, param)


async def test_every_parameter_that_has_a_use_is_taken() -> None:
    async with open_front() as front:
        made = (await front.post("/v1/responses", {"model": CHAT, "input": "hi"})).json()
        query = "include[]=message.output_text.logprobs&include[]=reasoning.encrypted_content&include_obfuscation=false"
        assert (await front.http.get(f"/v1/responses/{made['id']}?{query}")).json() == made


def plain_response() -> dict[str, Any]:
    """A response that nothing has happened to yet."""
    return response_head(ResponseBody(model=CHAT, input=[]), "resp_1", 1)


async def test_thinking_is_sealed_when_it_is_asked_for() -> None:
    async with open_front() as front:
        thought = {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        }
        response = plain_response() | {"status": "completed", "output": [thought]}
        await front.store.responses.save("", response, [thought])
        url = "/v1/responses/resp_1"
        assert "encrypted_content" not in (await front.http.get(url)).json()["output"][0]
        sealed = (await front.http.get(f"{url}?include=reasoning.encrypted_content")).json()["output"][0]
        listed = (await front.http.get(f"{url}/input_items?include=reasoning.encrypted_content")).json()["data"][0]
        assert sealed == listed
        body = {"model": CHAT, "input": [{"role": "user", "content": "hi"}, sealed, {"role": "user", "content": "so?"}]}
        assert (await front.post("/v1/responses", body)).status_code == 200


async def test_a_response_that_another_process_makes_can_be_read_but_not_followed() -> None:
    async with open_front() as front:
        response = plain_response() | {"status": "queued", "background": True}
        begins = (Lease("another", 1e12), StoredRequest(b"{}", 1))
        await front.store.responses.save("", response, [], begins=begins)
        assert (await front.http.get("/v1/responses/resp_1")).json()["status"] == "queued"
        error(await front.http.get("/v1/responses/resp_1?stream=true"), 409, "response_made_elsewhere", "response_id")
        error(await front.http.post("/v1/responses/resp_1/cancel"), 409, "response_made_elsewhere", "response_id")


async def test_a_broken_store_stops_what_needs_it_and_nothing_else(tmp_path: Any) -> None:
    path = tmp_path / "state.sqlite3"
    path.write_bytes(b"no database at all, and long enough" * 100)
    async with open_front(database=Database(path)) as front:
        body = {"model": CHAT, "input": "hi"}
        message = error(await front.post("/v1/responses", body), 503, "store_unavailable", None)
        assert "store: false" in message
        assert front.engine.num_jobs == 0
        assert (await front.post("/v1/responses", body | {"store": False})).status_code == 200
        assert (await front.chat()).status_code == 200
        error(await front.http.get("/v1/responses/resp_1"), 503, "store_unavailable", None)
        error(await front.post("/v1/conversations", {}), 503, "store_unavailable", None)
        error(await front.http.get("/v1/chat/completions"), 503, "store_unavailable", None)


async def test_what_is_too_large_to_be_stored_is_refused() -> None:
    database = Database(None)
    database.max_record_bytes = 4000
    async with open_front(database=database) as front:
        body = {"model": CHAT, "input": "hi", "metadata": {f"key {number}": "x" * 500 for number in range(8)}}
        error(await front.post("/v1/responses", body), 413, "record_too_large", None)
        assert (await front.post("/v1/responses", body | {"store": False})).status_code == 200
