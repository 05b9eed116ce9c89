"""The official client reads every answer and event of the Responses endpoints, and checks their types strictly."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fake_engine import CHAT, model_ready, open_front
from openai import OpenAI
from pydantic import BaseModel
from tcp_front import listening

from penstock.serving.handlers.responses import live
from penstock.serving.handlers.turn import (
    ChoiceEnd,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Turn,
    TurnEvent,
)
from penstock.serving.text.tools import Tool

TOOLS: Any = [
    {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": False},
    {"type": "custom", "name": "patch", "description": "Patches.", "format": {"type": "text"}},
    {
        "type": "namespace",
        "name": "agents",
        "description": "Sub-agents.",
        "tools": [{"type": "function", "name": "wait", "parameters": {"type": "object"}, "strict": None}],
    },
    {"type": "web_search"},
]
EVERYTHING: list[list[TurnEvent]] = [
    [ReasoningDelta(0, "let me"), ReasoningDelta(0, " think")],
    [TextDelta(0, "I will "), TextDelta(0, "look.")],
    [ToolCallStart(0, 0, "call_0", Tool(name="look")), ToolCallDelta(0, 0, '{"a'), ToolCallDelta(0, 0, '":1}')],
    [ToolCallEnd(0, 0, '{"a":1}'), ToolCallStart(0, 1, "call_1", Tool(name="patch", custom=True))],
    [ToolCallDelta(0, 1, "*** Begin"), ToolCallEnd(0, 1, "*** Begin")],
    [ToolCallStart(0, 2, "call_2", Tool(name="agents__wait")), ToolCallDelta(0, 2, "{}"), ToolCallEnd(0, 2, "{}")],
    [ReasoningDelta(0, "hm"), ChoiceEnd(0, "tool_calls")],
]
KINDS = {
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.output_item.done",
    "response.content_part.added",
    "response.content_part.done",
    "response.output_text.delta",
    "response.output_text.done",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.custom_tool_call_input.delta",
    "response.custom_tool_call_input.done",
    "response.completed",
}
REASONING = {"response.reasoning_text.delta", "response.reasoning_text.done"}
SUMMARY = {
    "response.reasoning_summary_part.added",
    "response.reasoning_summary_part.done",
    "response.reasoning_summary_text.delta",
    "response.reasoning_summary_text.done",
}


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that thinks, writes, and calls a tool of each kind."""

    async def play(turn: Turn, services: Any) -> AsyncGenerator[list[TurnEvent]]:
        for batch in EVERYTHING:
            await asyncio.sleep(0)
            yield batch

    monkeypatch.setattr(live, "run_turn_in_batches", play)


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize("summary", [None, "auto"])
async def test_every_event_and_item(summary: Any) -> None:
    async with open_front() as front:
        front.engine.models[CHAT] = model_ready(CHAT, max_model_len=8192)
        stream = await front.openai.responses.create(
            model=CHAT,
            input="hi",
            tools=TOOLS,
            stream=True,
            reasoning={"summary": summary},
            include=["reasoning.encrypted_content"],
        )
        events = [event async for event in stream]
        assert {event.type for event in events} == KINDS | (SUMMARY if summary else REASONING)
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last = events[-1]
        assert last.type == "response.completed"
        output = last.response.output
        kinds = ["reasoning", "message", "function_call", "custom_tool_call", "function_call", "reasoning"]
        assert [item.type for item in output] == kinds
        assert all(getattr(item, "status", None) == "completed" for item in output)
        assert [item.to_dict() for item in output] == [
            event.item.to_dict() for event in events if event.type == "response.output_item.done"
        ]
        look, patch, wait = (item.to_dict() for item in output[2:5])
        assert look["arguments"] == '{"a":1}' and patch["input"] == "*** Begin" and "namespace" not in look
        assert (wait["name"], wait["namespace"], wait["call_id"]) == ("wait", "agents", "call_2")

        answer = await front.openai.responses.create(
            model=CHAT, input="hi", tools=TOOLS, reasoning={"summary": summary}
        )
        assert [item.type for item in answer.output] == kinds and answer.output_text == "I will look."


@pytest.mark.usefixtures("everything")
async def test_what_the_server_sent_is_accepted_back() -> None:
    async with open_front() as front:
        front.engine.models[CHAT] = model_ready(CHAT, max_model_len=8192)
        answer = await front.openai.responses.create(
            model=CHAT, input="hi", tools=TOOLS, include=["reasoning.encrypted_content"]
        )
        replay: Any = [item.to_dict() for item in answer.output]
        outputs: Any = [
            {"type": "function_call_output", "call_id": "call_0", "output": "seen"},
            {"type": "custom_tool_call_output", "call_id": "call_1", "output": "patched"},
            {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "ok"}]},
        ]
        for history in ({"input": replay + outputs}, {"input": outputs, "previous_response_id": answer.id}):
            again = await front.openai.responses.create(model=CHAT, tools=TOOLS, **history)
            assert again.status == "completed"


async def test_the_stream_helper() -> None:
    async with open_front() as front:
        async with front.openai.responses.stream(model=CHAT, input="hi") as stream:
            snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert snapshots[-1] == final.output_text == "hello world"
        assert final.usage is not None and final.usage.output_tokens > 0


class Greeting(BaseModel):
    """What `parse` makes of an answer."""

    word: str


async def test_parse_and_the_neighbours() -> None:
    async with open_front() as front:
        front.engine.models[CHAT] = model_ready(CHAT, max_model_len=8192)
        front.engine.text = '{"word":"hi"}'
        parsed = await front.openai.responses.parse(model=CHAT, input="hi", text_format=Greeting)
        assert parsed.output_parsed == Greeting(word="hi")
        counted = await front.openai.responses.input_tokens.count(model=CHAT, input="hi")
        assert counted.input_tokens > 0
        compacted = await front.openai.responses.compact(model=CHAT, input="hi")
        assert [item.type for item in compacted.output] == ["compaction"]
        cut = await front.openai.responses.create(model=CHAT, input="hi", max_output_tokens=1)
        assert cut.status == "incomplete" and cut.incomplete_details is not None


async def test_the_synchronous_client() -> None:
    async with open_front() as front, listening(front) as base_url:

        def talk() -> list[str]:
            with OpenAI(api_key="none", base_url=base_url, max_retries=0, _strict_response_validation=True) as client:
                texts = [client.responses.create(model=CHAT, input="hi").output_text]
                with client.responses.stream(model=CHAT, input="hi") as stream:
                    texts.append(stream.get_final_response().output_text)
                front.engine.text = '{"word":"hi"}'
                parsed = client.responses.parse(model=CHAT, input="hi", text_format=Greeting)
                assert parsed.output_parsed is not None
                return [*texts, parsed.output_parsed.word]

        assert await asyncio.to_thread(talk) == ["hello world", "hello world", "hi"]
