"""POST /v1/messages by the official client and by hand: answers, streams, what Claude Code sends."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anthropic import AsyncAnthropic, BadRequestError, NotFoundError
from fake_engine import CHAT, Exchange, Front, model_ready, open_front, until, use_template

from penstock.scheduler.messages import JobError, RequestOutput, Submit
from penstock.serving.handlers.anthropic import messages

CLAUDE_CODE = json.loads((Path(__file__).parents[1] / "data" / "claude_code_request.json").read_text())
HI: list[Any] = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@asynccontextmanager
async def open_anthropic(**app_options: Any) -> AsyncIterator[tuple[Front, AsyncAnthropic]]:
    """A front with much room, and the official client, which checks every answer against Anthropic's types."""
    async with open_front(**app_options) as front:
        front.engine.models[CHAT] = model_ready(CHAT, max_model_len=16_000)
        yield (
            front,
            AsyncAnthropic(
                api_key="none",
                base_url="http://front",
                http_client=front.http,
                max_retries=0,
                _strict_response_validation=True,
            ),
        )


def prompt(front: Front) -> str:
    """What the model was shown, special tokens left out."""
    return front.engine.tokenizer.decode(front.engine.job.prompt_token_ids)


def framed(response: httpx2.Response) -> list[dict[str, Any]]:
    """The events of a stream, each named after its type."""
    assert response.status_code == 200, response.text
    *frames, rest = response.text.split("\n\n")
    assert rest == ""
    values = []
    for frame in frames:
        name, data = frame.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        values.append(value)
    return values


async def test_a_message() -> None:
    async with open_anthropic() as (front, client):
        message = await client.messages.create(
            model=CHAT,
            max_tokens=50,
            messages=HI,
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 7},
            metadata={"user_id": "someone"},
            service_tier="auto",
        )
        assert message.id.startswith("msg_") and message.model == CHAT and message.role == "assistant"
        assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "hello world"}]
        assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
        usage = message.usage
        assert usage.cache_read_input_tokens == 4 and usage.cache_creation_input_tokens == 0
        assert usage.input_tokens + 4 == len(front.engine.job.prompt_token_ids)
        assert usage.output_tokens == len(front.engine.encode("hello world")) + 1
        assert prompt(front) == "system\nBe brief.\nuser\nhi\nassistant\n"
        sampling = front.engine.job.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.9, 7, 50)


async def test_a_stream_is_the_same_message() -> None:
    async with open_anthropic() as (_, client):
        whole = await client.messages.create(model=CHAT, max_tokens=50, messages=HI)
        async with client.messages.stream(model=CHAT, max_tokens=50, messages=HI) as stream:
            texts = [text async for text in stream.text_stream]
            message = await stream.get_final_message()
        assert "".join(texts) == "hello world" and len(texts) > 1
        assert message.to_dict() | {"id": ""} == whole.to_dict() | {"id": ""}


async def test_the_events_of_a_stream() -> None:
    async with open_anthropic() as (front, _):
        front.engine.tokens_per_step = 100
        body = {"model": CHAT, "max_tokens": 50, "messages": HI, "stream": True}
        response = await front.post("/v1/messages?beta=true", body)
        assert response.headers["content-type"].startswith("text/event-stream") and response.headers["request-id"]
        start, ping, block, delta, stop, end, last = framed(response)
        assert start["message"] == start["message"] | {"content": [], "stop_reason": None, "stop_sequence": None}
        assert start["message"]["usage"]["cache_read_input_tokens"] == 4
        assert ping == {"type": "ping"} and last == {"type": "message_stop"}
        assert block == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        assert delta["delta"] == {"type": "text_delta", "text": "hello world"}
        assert stop == {"type": "content_block_stop", "index": 0}
        assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None, "stop_details": None}
        assert end["usage"]["output_tokens"] == len(front.engine.encode("hello world")) + 1


@pytest.mark.parametrize("stream", [False, True])
async def test_reasons_to_stop(stream: bool) -> None:
    async with open_anthropic() as (front, client):

        async def stopped(**fields: Any) -> tuple[str | None, str | None, str]:
            arguments = {"model": CHAT, "messages": HI, "max_tokens": 50} | fields
            if stream:
                async with client.messages.stream(**arguments) as events:
                    message: Any = await events.get_final_message()
            else:
                message = await client.messages.create(**arguments)
            text = "".join(block.text for block in message.content)
            return message.stop_reason, message.stop_sequence, text

        assert await stopped(stop_sequences=["orl", "zzz"]) == ("stop_sequence", "orl", "hello w")
        assert (await stopped(max_tokens=2))[:2] == ("max_tokens", None)
        room = len(front.engine.jobs[0].prompt_token_ids) + 2  # type: ignore[union-attr]
        front.engine.models[CHAT] = model_ready(CHAT, max_model_len=room)
        assert (await stopped(max_tokens=20_000))[:2] == ("model_context_window_exceeded", None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("display", ["summarized", "omitted"])
async def test_thinking_is_a_block_of_its_own(stream: bool, display: str) -> None:
    async with open_anthropic() as (front, client):
        use_template(front, THINKING_TEMPLATE)
        front.engine.text = "<think>hello</think>world"
        arguments: Any = {"model": CHAT, "messages": HI, "max_tokens": 100}
        arguments["thinking"] = {"type": "adaptive", "display": display}
        if stream:
            async with client.messages.stream(**arguments) as events:
                message: Any = await events.get_final_message()
        else:
            message = await client.messages.create(**arguments)
        thought, text = message.content
        assert thought.thinking == ("hello" if display == "summarized" else "") and thought.signature
        assert text.text == "world"
        assert message.usage.output_tokens_details.thinking_tokens > 0
        replay = [*HI, {"role": "assistant", "content": message.content}, *HI]
        assert (await client.messages.create(**(arguments | {"messages": replay}))).content


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"thinking": {"type": "adaptive"}}, True),
        ({"output_config": {"effort": "high"}}, True),
    ],
)
async def test_the_model_thinks_if_it_is_asked_to(fields: Any, thinks: bool) -> None:
    async with open_anthropic() as (front, client):
        use_template(front, THINKING_TEMPLATE)
        await client.messages.create(model=CHAT, messages=HI, max_tokens=2000, **fields)
        assert ("</think>" not in prompt(front)) == thinks


async def test_pings_while_a_prompt_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient = partial(messages.with_pauses, seconds=0.001)
    monkeypatch.setattr(messages, "with_pauses", impatient)
    async with open_anthropic() as (front, _):
        front.engine.script = lambda job: [
            0.05,
            RequestOutput(job.request_id, [], num_computed_tokens=1),
            0.05,
            *front.engine.say(job),
        ]
        body = {"model": CHAT, "max_tokens": 50, "messages": HI, "stream": True}
        kinds = [event["type"] for event in framed(await front.post("/v1/messages", body))]
        first_block = kinds.index("content_block_start")
        assert kinds[0] == "message_start" and set(kinds[1:first_block]) == {"ping"} and first_block > 3
        assert "ping" not in kinds[first_block:]


async def test_what_claude_code_sends() -> None:
    async with open_anthropic() as (front, _):
        body = CLAUDE_CODE | {"model": CHAT}
        response = await front.post("/v1/messages?beta=true", body)
        end = framed(response)[-2]
        assert end["delta"]["stop_reason"] == "end_turn"
        assert end["context_management"] == {"applied_edits": []}
        shown = prompt(front)
        assert "You are an agent." in shown and "You may start other agents." in shown
        assert "billing" not in shown
        assert shown.index("run echo") < shown.index("start other agents") < shown.index("claude_tool_ran")


async def test_an_answer_that_is_begun_is_continued() -> None:
    async with open_anthropic() as (front, client):
        begun: Any = [*HI, {"role": "assistant", "content": "The answer is ("}]
        await client.messages.create(model=CHAT, max_tokens=5, messages=begun)
        assert prompt(front).endswith("The answer is (")


async def test_tokens_are_counted_without_a_job() -> None:
    async with open_anthropic() as (front, client):
        arguments: Any = {"model": CHAT, "messages": HI, "system": "Be brief.", "tools": [WEATHER]}
        counted = await client.messages.count_tokens(**arguments)
        assert front.engine.jobs == []
        await client.messages.create(max_tokens=5, **arguments)
        assert counted.input_tokens == len(front.engine.job.prompt_token_ids)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "'model'"),
    ({"max_tokens": None}, "'max_tokens'"),
    ({"max_tokens": 0}, "'max_tokens'"),
    ({"messages": []}, "'messages'"),
    ({"temperature": 1.5}, "'temperature'"),
    ({"nonsense": 1}, "'nonsense'"),
    ({"container": "c"}, "'container'"),
    ({"mcp_servers": [{}]}, "'mcp_servers'"),
    ({"speed": "fast"}, "'speed'"),
    ({"service_tier": "priority"}, "'service_tier'"),
    ({"system": [IMAGE]}, "'system.0.type'"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "'messages.0.content.0.type'"),
    ({"messages": [{"role": "user", "content": [DOCUMENT]}]}, "'messages.0.content.0.type'"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "'messages.0.content.0.text'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": [IMAGE]}]}]},
        "'messages.0.content.0.content.0.type'",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
        "'messages.0.content.0.tool_use_id'",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": {}}]}]},
        "'messages.0'",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]}, "'messages.0.content.0'"),
    ({"tools": [{"name": "f"}]}, "'tools.0.input_schema'"),
    ({"tools": [WEATHER, WEATHER]}, "'tools'"),
    ({"tool_choice": {"type": "any"}}, "'tool_choice'"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "f"}}, "'tool_choice.name'"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "'output_config.format.schema'"),
]


@pytest.mark.parametrize(("fields", "names"), FAULTS)
async def test_bad_requests_name_the_field(fields: dict[str, Any], names: str) -> None:
    async with open_anthropic() as (front, _):
        response = await front.post("/v1/messages", {"model": CHAT, "max_tokens": 5, "messages": HI} | fields)
        assert response.status_code == 400, response.text
        body = response.json()
        assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
        assert body["error"]["type"] == "invalid_request_error" and names in body["error"]["message"]
        assert body["request_id"] == response.headers["request-id"]
        assert front.engine.jobs == []


async def test_errors_as_the_client_knows_them() -> None:
    async with open_anthropic() as (front, client):
        with pytest.raises(NotFoundError, match="not served here"):
            await client.messages.create(model="none", max_tokens=5, messages=HI)
        front.engine.models[CHAT] = model_ready(CHAT, max_model_len=20)
        long: Any = [{"role": "user", "content": "hello " * 100}]
        with pytest.raises(BadRequestError, match=r"prompt is too long: \d+ tokens > 20 maximum"):
            await client.messages.create(model=CHAT, max_tokens=5, messages=long)
        response = await front.http.post("/v1/messages", content=b"[]")
        assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("tokens_first", [False, True])
async def test_a_failing_job(tokens_first: bool) -> None:
    async with open_anthropic() as (front, _):
        fault = JobError("the device ran out of memory", "internal_error", None, 500)
        begin = front.engine.say if tokens_first else (lambda job: [])
        front.engine.script = lambda job: [*begin(job)[:1], RequestOutput(job.request_id, [], 0, "error", error=fault)]
        body = {"model": CHAT, "max_tokens": 50, "messages": HI, "stream": True}
        response = await front.post("/v1/messages", body)
        error = framed(response)[-1] if tokens_first else response.json()
        assert error["type"] == "error" and error["error"]["type"] == "api_error"
        assert error["error"]["message"] == fault.message
        assert response.status_code == (200 if tokens_first else 500)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_is_cancelled(stream: bool) -> None:
    async with open_anthropic() as (front, _):
        front.engine.script = lambda job: [*front.engine.say(job)[:1], 60.0]
        body = {"model": CHAT, "max_tokens": 50, "messages": HI, "stream": stream}
        exchange = Exchange(front.app, "/v1/messages", body)
        await until(lambda: len(front.engine.jobs) == 1 and (not stream or b"hello" in exchange.body))
        exchange.disconnect()
        await exchange.task
        assert front.engine.cancelled == [front.engine.job.request_id] and front.engine.num_jobs == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_and_answered(stream: bool) -> None:
    async with open_anthropic() as (front, client):
        front.engine.text = "Let me see.\n" + CALL
        arguments: Any = {"model": CHAT, "messages": HI, "max_tokens": 200, "tools": [WEATHER]}
        if stream:
            async with client.messages.stream(**arguments) as events:
                pieces = [event.partial_json async for event in events if event.type == "input_json"]
                message: Any = await events.get_final_message()
            assert len(pieces) > 1 and json.loads("".join(pieces)) == {"city": "Zürich"}
        else:
            message = await client.messages.create(**arguments)
        text, call = message.content
        assert text.text.strip() == "Let me see." and message.stop_reason == "tool_use"
        assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": "Zürich"})
        assert call.id.startswith("toolu_")
        front.engine.jobs.clear()
        front.engine.text = "Sunny."
        answer = [{"type": "tool_result", "tool_use_id": call.id, "content": "rain", "is_error": True}]
        history = [*HI, {"role": "assistant", "content": message.content}, {"role": "user", "content": answer}]
        again = await client.messages.create(**(arguments | {"messages": history}))
        assert again.content[0].text == "Sunny."
        shown = prompt(front)
        assert "Error: rain" in shown and '"city": "Zürich"' in shown and "Tells the weather." in shown


async def test_a_forced_choice_of_tools() -> None:
    async with open_anthropic() as (front, client):
        front.engine.text = CALL
        named = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
        for choice in ({"type": "any"}, named):
            message = await client.messages.create(
                model=CHAT,
                messages=HI,
                max_tokens=200,
                tools=[WEATHER],
                tool_choice=choice,  # type: ignore[arg-type]
            )
            assert message.stop_reason == "tool_use"
        assert all(isinstance(job, Submit) and job.sampling.grammar for job in front.engine.jobs)
        front.engine.text = "No."
        message = await client.messages.create(
            model=CHAT, messages=HI, max_tokens=9, tools=[WEATHER], tool_choice={"type": "none"}
        )
        assert message.stop_reason == "end_turn"


async def test_tools_that_no_model_is_offered_are_named() -> None:
    async with open_anthropic() as (front, _):
        tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}, WEATHER]
        response = await front.post("/v1/messages", {"model": CHAT, "max_tokens": 5, "messages": HI, "tools": tools})
        assert response.status_code == 200, response.text
        assert response.headers["x-penstock-tools-not-offered"] == "web_search"
        assert "web_search" not in prompt(front) and "get_weather" in prompt(front)


async def test_json_that_fits_a_schema() -> None:
    async with open_anthropic() as (front, client):
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        await client.messages.create(
            model=CHAT, max_tokens=50, messages=HI, output_config={"format": {"type": "json_schema", "schema": schema}}
        )
        assert "integer" in front.engine.job.sampling.grammar
