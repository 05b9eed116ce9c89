"""POST /v1/responses over a scripted engine: events, items, tools, thinking, limits and failures."""

import asyncio
import json
from typing import Any

import pytest
from fake_engine import (
    CHAT,
    Exchange,
    Front,
    error,
    model_ready,
    open_front,
    tiny_tokenizer,
    until,
    use_template,
)

from penstock.scheduler.config import ModelSpec
from penstock.scheduler.messages import JobError, ModelFailed, RequestOutput, Submit
from penstock.serving.handlers.responses import live
from penstock.serving.handlers.responses.messages import SUMMARY_REQUEST
from penstock.serving.handlers.responses.sealed import unseal

TOOL_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINK_TEMPLATE = "{# <think> </think> #}" + TOOL_TEMPLATE
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "a"}}\n</tool_call>'


async def respond(front: Front, **fields: Any) -> Any:
    return await front.post("/v1/responses", {"model": CHAT, "input": "hi"} | fields)


async def stream(front: Front, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, whose frames and numbers are as they must be."""
    response = await respond(front, stream=True, **fields)
    assert response.status_code == 200, response.text
    frames = response.text.split("\n\n")
    assert frames.pop() == ""
    events = []
    for number, framed in enumerate(frames):
        name, data = framed.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}" and event["sequence_number"] == number
        events.append(event)
    return events


def prompt_of(front: Front) -> str:
    """The prompt of the newest job."""
    job = front.engine.jobs[-1]
    assert isinstance(job, Submit)
    text: str = tiny_tokenizer().decode(job.prompt_token_ids, skip_special_tokens=False)
    return text


def give_room(front: Front) -> None:
    """The tiny tokenizer needs about a token a letter."""
    front.engine.models[CHAT] = model_ready(CHAT, max_model_len=8192)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types of the events, repeated ones once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


async def test_a_text_answer() -> None:
    async with open_front() as front:
        response = (await respond(front)).json()
        assert response["status"] == "completed" and response["object"] == "response"
        (message,) = response["output"]
        assert message["content"] == [{"type": "output_text", "text": "hello world", "annotations": [], "logprobs": []}]
        assert (message["role"], message["status"]) == ("assistant", "completed")
        job = front.engine.job
        assert response["usage"] == {
            "input_tokens": len(job.prompt_token_ids),
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 12},
            "output_tokens": len(front.engine.encode("hello world")) + 1,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": len(job.prompt_token_ids) + len(front.engine.encode("hello world")) + 1,
        }
        assert (response["temperature"], response["top_p"], response["service_tier"]) == (1.0, 1.0, "default")


async def test_the_events_of_a_text_answer() -> None:
    async with open_front() as front:
        events = await stream(front)
        assert kinds(events) == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
        assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
        deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
        assert len(deltas) > 1 and "".join(deltas) == "hello world"
        done = events[-2]["item"]
        assert events[-1]["response"]["output"] == [done] and done["id"] == events[2]["item"]["id"]
        assert {event["item_id"] for event in events if "item_id" in event} == {done["id"]}


async def test_log_probabilities_in_deltas_and_in_the_message() -> None:
    async with open_front() as front:
        events = await stream(front, include=["message.output_text.logprobs"], top_logprobs=2)
        parts = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
        entries = [entry for part in parts for entry in part]
        assert b"".join(bytes(entry["bytes"]) for entry in entries) == b"hello world"
        assert [len(entry["top_logprobs"]) for entry in entries] == [2] * len(entries)
        assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == entries
        bare = (await respond(front, include=["message.output_text.logprobs"])).json()
        assert all(entry["top_logprobs"] == [] for entry in bare["output"][0]["content"][0]["logprobs"])


async def test_a_limit_of_one_token_makes_it_incomplete() -> None:
    async with open_front() as front:
        events = await stream(front, max_output_tokens=1)
        response = events[-1]["response"]
        assert events[-1]["type"] == "response.incomplete" and response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["output"][0]["status"] == "incomplete" and response["usage"]["output_tokens"] == 1


async def test_an_answer_of_nothing_is_an_empty_message() -> None:
    async with open_front() as front:
        front.engine.text = ""
        (message,) = (await respond(front)).json()["output"]
        assert message["content"][0]["text"] == ""


async def test_thinking_is_an_item_of_its_own() -> None:
    async with open_front() as front:
        use_template(front, THINK_TEMPLATE)
        front.engine.text = "<think>hm</think>yes"
        events = await stream(front, include=["reasoning.encrypted_content"])
        assert kinds(events)[2:8] == [
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
        ]
        thought, message = events[-1]["response"]["output"]
        assert thought["summary"] == [] and thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
        assert unseal("reasoning", thought["encrypted_content"]) == "hm"
        assert message["content"][0]["text"] == "yes"
        assert events[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


async def test_clients_that_ask_for_a_summary_get_the_thinking_as_one() -> None:
    async with open_front() as front:
        use_template(front, THINK_TEMPLATE)
        front.engine.text = "<think>hm</think>yes"
        events = await stream(front, reasoning={"summary": "auto", "effort": "high"})
        assert kinds(events)[3:7] == [
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
        ]
        thought = events[-1]["response"]["output"][0]
        assert thought["summary"] == [{"type": "summary_text", "text": "hm"}]
        assert "content" not in thought and "encrypted_content" not in thought


async def test_calls_in_the_models_text_become_items() -> None:
    async with open_front() as front:
        give_room(front)
        use_template(front, TOOL_TEMPLATE)
        front.engine.text = f"I look.\n{CALL}\n{CALL.replace('look', 'agents__look')}"
        agents = {"type": "namespace", "name": "agents", "description": "", "tools": [LOOK]}
        events = await stream(front, tools=[LOOK, agents])
        message, first, second = events[-1]["response"]["output"]
        assert message["content"][0]["text"].strip() == "I look."
        assert [(item["type"], item["name"], item.get("namespace")) for item in (first, second)] == [
            ("function_call", "look", None),
            ("function_call", "look", "agents"),
        ]
        assert json.loads(first["arguments"]) == {"at": "a"} and first["call_id"] != second["call_id"]
        pieces = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
        assert "".join(event["delta"] for event in pieces if event["output_index"] == 1) == first["arguments"]


async def test_a_call_that_is_cut_is_incomplete() -> None:
    async with open_front() as front:
        give_room(front)
        use_template(front, TOOL_TEMPLATE)
        front.engine.text = CALL
        limit = len(front.engine.encode(CALL.partition(': "a"')[0]))
        response = (await respond(front, tools=[LOOK], max_output_tokens=limit)).json()
        (call,) = response["output"]
        assert response["status"] == call["status"] == "incomplete" and call["arguments"].startswith('{"at"')


async def test_built_in_tools_are_echoed_and_said_not_to_be_offered() -> None:
    async with open_front() as front:
        use_template(front, TOOL_TEMPLATE)
        search = {"type": "web_search", "external_web_access": False}
        response = await respond(front, tools=[search, LOOK])
        assert response.headers["x-penstock-tools-not-offered"] == "web_search"
        assert response.json()["tools"][0] == search
        assert "web_search" not in prompt_of(front)


async def test_what_has_no_effect_is_not_said_to_have_one() -> None:
    async with open_front() as front:
        wishes = {"reasoning": {"effort": "high"}, "text": {"verbosity": "low"}, "service_tier": "flex"}
        response = (await respond(front, **wishes)).json()
        assert response["reasoning"]["effort"] is None and response["text"]["verbosity"] == "medium"
        assert response["service_tier"] == "default"
        use_template(front, "{{ reasoning_effort }} {{ verbosity }}" + TOOL_TEMPLATE)
        response = (await respond(front, **wishes)).json()
        assert response["reasoning"]["effort"] == "high" and response["text"]["verbosity"] == "low"
        assert prompt_of(front).startswith("high low")


async def test_history_by_previous_response_and_by_reference() -> None:
    async with open_front() as front:
        first = (await respond(front, instructions="be brief")).json()
        again = await respond(front, input="and?", previous_response_id=first["id"])
        assert again.status_code == 200
        prompt = prompt_of(front)
        assert "hi" in prompt and "hello world" in prompt and "and?" in prompt and "be brief" not in prompt
        reference = [{"type": "item_reference", "id": first["output"][0]["id"]}, {"role": "user", "content": "so?"}]
        assert (await respond(front, input=reference)).status_code == 200
        prompt = prompt_of(front)
        assert "hello world" in prompt and "so?" in prompt


async def test_what_is_not_stored_is_named() -> None:
    async with open_front() as front:
        unstored = (await respond(front, store=False)).json()
        lost = await respond(front, input=[{"id": unstored["output"][0]["id"]}])
        assert unstored["output"][0]["id"] in error(lost, 404, "item_not_found", "input.0")
        gone = await respond(front, previous_response_id="resp_0")
        assert "resp_0" in error(gone, 400, "previous_response_not_found", "previous_response_id")
        error(await respond(front, conversation="conv_0"), 404, "conversation_not_found", "conversation")


async def test_bad_requests_are_plain_errors_even_for_streams() -> None:
    async with open_front() as front:
        long = "hello " * 300
        message = error(await respond(front, input=long, stream=True), 400, "context_length_exceeded", "input")
        assert "256" in message
        error(await respond(front, model="nobody", stream=True), 404, "model_not_found", "model")
        error(await front.post("/v1/responses", {"model": CHAT}), 400, "missing_required_parameter", "input")
        assert front.engine.jobs == []


async def test_truncation_drops_the_oldest_turns() -> None:
    async with open_front() as front:
        turns = [
            item
            for number in range(12)
            for item in (
                {"role": "user", "content": f"question {number} " + "fox " * 8},
                {"role": "assistant", "content": f"answer {number}"},
            )
        ]
        chat = [{"role": "developer", "content": "rules"}, *turns, {"role": "user", "content": "last"}]
        error(await respond(front, input=chat), 400, "context_length_exceeded", "input")
        response = (await respond(front, input=chat, truncation="auto")).json()
        assert response["truncation"] == "auto" and response["status"] == "completed"
        prompt = prompt_of(front)
        assert "rules" in prompt and "last" in prompt and "answer 11" in prompt and "answer 0" not in prompt
        assert 256 - len(front.engine.job.prompt_token_ids) >= 256 // 8
        error(await respond(front, input="hello " * 300, truncation="auto"), 400, "context_length_exceeded", "input")


def failing(job: JobError, *, after: float = 0.0, text: str = "") -> Any:
    def script(submit: Submit) -> list[RequestOutput | float]:
        outputs: list[RequestOutput | float] = [after] if after else []
        if text:
            outputs.append(RequestOutput(submit.request_id, [ord(text)]))
        return [*outputs, RequestOutput(submit.request_id, [], finish_reason="error", error=job)]

    return script


async def test_a_job_that_is_refused_at_once_is_a_plain_error() -> None:
    async with open_front() as front:
        front.engine.script = failing(JobError("bad grammar", "invalid_grammar", "text.format.schema"))
        for streams in (False, True):
            answer = await respond(front, stream=streams)
            assert "bad grammar" in error(answer, 400, "invalid_grammar", "text.format.schema")


async def test_a_failure_in_the_stream_is_response_failed(caplog: pytest.LogCaptureFixture) -> None:
    async with open_front() as front:
        front.engine.script = failing(JobError("out of order", "internal_error", status=500), text="a")
        events = await stream(front)
        assert events[-1]["type"] == "response.failed"
        response = events[-1]["response"]
        assert response["status"] == "failed" and response["error"]["code"] == "server_error"
        assert response["usage"]["output_tokens"] == 1
        error(await respond(front), 500, "internal_error", None)


async def test_codex_knows_when_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST_SIGN_SECONDS", 0.01)
    async with open_front() as front:
        for status, code, wanted in (
            (429, "busy", "rate_limit_exceeded"),
            (503, "engine_dead", "server_error"),
            (400, "context_length_exceeded", "context_length_exceeded"),
            (400, "invalid_value", "invalid_prompt"),
        ):
            front.engine.script = failing(JobError("no", code, status=status), after=0.05)
            failed = (await stream(front))[-1]["response"]["error"]
            assert failed["code"] == wanted
            assert ("try again in 5s" in failed["message"]) == (status in (429, 503))


async def test_silence_is_filled_with_data_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST_SIGN_SECONDS", 0.005)
    monkeypatch.setattr(live, "KEEP_ALIVE_SECONDS", 0.005)
    async with open_front() as front:
        front.engine.script = lambda job: [0.3, *front.engine.say(job)]
        names = [event["type"] for event in await stream(front)]
        assert names[:4] == ["response.created", *["response.in_progress"] * 3]
        assert names.count("response.in_progress") > 3

        def computing(job: Submit) -> list[RequestOutput | float]:
            """A long prompt: signs of life that are no events."""
            signs = [RequestOutput(job.request_id, [], num_computed_tokens=number) for number in range(1, 100)]
            return [item for sign in signs for item in (sign, 0.002)] + front.engine.say(job)

        front.engine.script = computing
        names = [event["type"] for event in await stream(front)]
        assert 3 < names.count("response.in_progress") < 100


async def test_a_stream_lives_while_its_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST_SIGN_SECONDS", 0.005)
    monkeypatch.setattr(live, "KEEP_ALIVE_SECONDS", 0.005)
    async with open_front() as front:
        del front.engine.models[CHAT]
        fails: list[ModelFailed] = []

        def answers(spec: ModelSpec) -> list[Any]:
            loop = asyncio.get_running_loop()
            loop.call_later(0.05, front.engine._deliver, fails.pop() if fails else model_ready(spec.name))
            return []

        front.engine.load_answers = answers
        names = [event["type"] for event in await stream(front)]
        assert names.count("response.in_progress") > 3 and names[-1] == "response.completed"
        del front.engine.models[CHAT]
        fails.append(ModelFailed(CHAT, "the weights are torn"))
        last = (await stream(front))[-1]
        assert last["type"] == "response.failed" and "torn" in last["response"]["error"]["message"]


async def test_a_trailing_trigger_makes_one_compaction_item_that_can_come_back() -> None:
    async with open_front() as front:
        give_room(front)
        front.engine.text = "they said hello"
        chat = [{"role": "user", "content": "hello?"}, {"type": "compaction_trigger"}]
        events = await stream(front, input=chat)
        assert kinds(events)[2:] == ["output_item.added", "output_item.done", "completed"]
        (compaction,) = events[-1]["response"]["output"]
        assert compaction["type"] == "compaction"
        prompt = prompt_of(front)
        assert SUMMARY_REQUEST[:20] in prompt and "hello?" in prompt
        assert (await respond(front, input=[compaction, {"role": "user", "content": "go on"}])).status_code == 200
        prompt = prompt_of(front)
        assert "they said hello" in prompt and "hello?" not in prompt


async def test_compact_and_input_tokens() -> None:
    async with open_front() as front:
        give_room(front)
        body = {"model": CHAT, "input": "hello?"}
        compacted = (await front.post("/v1/responses/compact", body)).json()
        assert compacted["object"] == "response.compaction" and compacted["usage"]["output_tokens"] > 0
        (compaction,) = compacted["output"]
        assert unseal("compaction", compaction["encrypted_content"]) == "hello world"
        counted = (await front.post("/v1/responses/input_tokens", body)).json()
        await respond(front, input="hello?")
        used = len(front.engine.jobs[-1].prompt_token_ids)  # type: ignore[union-attr]
        assert counted == {"object": "response.input_tokens", "input_tokens": used}
        error(await front.post("/v1/responses/compact", body | {"model": "nobody"}), 404, "model_not_found", "model")


@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_leaves_ends_the_work(streams: bool) -> None:
    async with open_front() as front:
        front.engine.script = lambda job: [60.0]
        exchange = Exchange(front.app, "/v1/responses", {"model": CHAT, "input": "hi", "stream": streams})
        await until(lambda: front.engine.num_jobs == 1)
        exchange.disconnect()
        await until(lambda: front.engine.num_jobs == 0)
        await exchange.task


async def test_in_the_background_it_goes_on_without_its_client() -> None:
    async with open_front() as front:
        front.engine.script = lambda job: [0.02, *front.engine.say(job)]
        begun = (await respond(front, background=True)).json()
        assert begun["status"] in ("queued", "in_progress") and begun["background"] is True

        async def is_done() -> bool:
            return bool((await front.http.get(f"/v1/responses/{begun['id']}")).json()["status"] == "completed")

        async with asyncio.timeout(5):
            while not await is_done():
                await asyncio.sleep(0.005)
        resumed = await front.http.get(f"/v1/responses/{begun['id']}?stream=true&starting_after=1")
        numbers = [json.loads(line[6:])["sequence_number"] for line in resumed.text.split("\n") if line[:5] == "data:"]
        assert numbers == list(range(2, 2 + len(numbers))) and numbers
        error(await respond(front, background=True, model="nobody"), 404, "model_not_found", "model")


async def test_a_conversation_grows_by_what_is_said() -> None:
    async with open_front() as front:
        conversation = (await front.post("/v1/conversations", {})).json()["id"]
        first = (await respond(front, conversation=conversation)).json()
        assert first["conversation"] == {"id": conversation}
        await respond(front, input="and?", conversation={"id": conversation})
        prompt = prompt_of(front)
        assert [prompt.index(text) for text in ("hi<", "hello world", "and?")] == sorted(
            prompt.index(text) for text in ("hi<", "hello world", "and?")
        )
        items = (await front.http.get(f"/v1/conversations/{conversation}/items?order=asc")).json()["data"]
        assert [item["role"] for item in items] == ["user", "assistant", "user", "assistant"]
