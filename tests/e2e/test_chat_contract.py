"""Tools and structured output of chat completions: a real server holds a very small model to what is asked of it."""

import json
import re
from typing import Any, Literal

import jsonschema
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

CHAT = "smollm2-135m-instruct"
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris, France?"}]
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
CLOCK: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"type": "string", "maxLength": 8}},
    "required": ["zone"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "Weather of a city.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "clock", "description": "Time in a zone.", "parameters": CLOCK}},
]
SCHEMAS = {"weather": WEATHER, "clock": CLOCK}


class Report(BaseModel):
    """What a structured answer is parsed to."""

    place: str = Field(max_length=10)
    mood: Literal["sunny", "rainy"]
    degrees: int = Field(ge=-9, le=40)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "clock"}),
        ({"type": "function", "function": {"name": "clock"}}, {"clock"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]},
            },
            {"weather"},
        ),
    ],
)
def test_demanded_calls_fit_their_schemas(client: OpenAI, choice: Any, names: set[str], temperature: int) -> None:
    answer = client.chat.completions.create(
        model=CHAT,
        messages=QUESTION,
        tools=TOOLS,
        tool_choice=choice,
        temperature=temperature,
        seed=1,
        n=2,
        max_tokens=200,
    )
    for one in answer.choices:
        assert one.finish_reason == "tool_calls" and one.message.content is None
        assert one.message.tool_calls is not None
        (call,) = one.message.tool_calls
        assert call.type == "function" and call.function.name in names
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


def test_a_streamed_call_is_the_same(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": CHAT,
        "messages": QUESTION,
        "tools": TOOLS,
        "tool_choice": "required",
        "temperature": 0,
        "max_tokens": 200,
    }
    whole = client.chat.completions.create(**asked)
    expected = whole.choices[0].message.tool_calls[0].function
    chunks = list(client.chat.completions.create(**asked, stream=True))
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert deltas[0].id and deltas[0].function.name == expected.name
    assert len(deltas) > 3 and "".join(d.function.arguments or "" for d in deltas) == expected.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls[0].function.arguments == expected.arguments


def test_a_result_is_answered_in_text(client: OpenAI) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages: Any = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "sunny, 20 degrees"},
    ]
    answer = client.chat.completions.create(
        model=CHAT, messages=messages, tools=TOOLS, tool_choice="none", temperature=0, max_tokens=40
    )
    assert answer.choices[0].message.content and answer.choices[0].message.tool_calls is None


def test_a_custom_tool_gets_text_of_its_grammar(client: OpenAI) -> None:
    grammar = {"syntax": "regex", "definition": "(move|turn) [0-9]{1,3}"}
    robot: Any = {"type": "custom", "custom": {"name": "robot", "format": {"type": "grammar", "grammar": grammar}}}
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "Go ahead."}],
        tools=[robot],
        tool_choice="required",
        max_tokens=60,
    )
    assert answer.choices[0].message.tool_calls is not None
    call = answer.choices[0].message.tool_calls[0]
    assert call.type == "custom" and re.fullmatch(grammar["definition"], call.custom.input)


def test_answers_are_parsed_into_a_model(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": CHAT, "messages": QUESTION, "response_format": Report, "max_tokens": 100}
    parsed = client.chat.completions.parse(**asked, n=3, temperature=1, seed=2)
    assert all(isinstance(choice.message.parsed, Report) for choice in parsed.choices)
    with client.chat.completions.stream(**asked) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Report)


def test_answers_keep_to_other_forms(client: OpenAI) -> None:
    def say(**fields: Any) -> str:
        answer = client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=60, extra_body=fields)
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].message.content or ""

    assert say(choice=["sun", "rain"]) in ("sun", "rain")
    assert re.fullmatch(r"[a-z]{3,8}!", say(regex=r"[a-z]{3,8}!"))
    assert say(grammar='start: "yes" | "no"') in ("yes", "no")


def test_a_strict_tool_beside_free_text(client: OpenAI) -> None:
    strict: Any = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
    answer = client.chat.completions.create(
        model=CHAT, messages=QUESTION, tools=strict, temperature=0, max_tokens=120, n=1
    )
    message = answer.choices[0].message
    for call in message.tool_calls or ():
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    assert message.tool_calls or message.content
