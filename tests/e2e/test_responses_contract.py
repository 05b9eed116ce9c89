"""POST /v1/responses on a real server: a 135M model, held to schemas and grammars, through the official client."""

import json
from typing import Any, Literal

from openai import OpenAI
from pydantic import BaseModel

CHAT = "smollm2-135m-instruct"
LOOK: Any = {
    "type": "function",
    "name": "look_up",
    "description": "Looks a city's weather up.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}


class River(BaseModel):
    """What the model is held to."""

    name: Literal["Rhine", "Rhône"]
    is_long: bool


def test_text_history_and_stream(client: OpenAI) -> None:
    first = client.responses.create(model=CHAT, input="Name a river.", max_output_tokens=12, temperature=0)
    assert first.output_text and first.usage is not None and first.usage.output_tokens <= 12
    second = client.responses.create(
        model=CHAT, input="And another?", previous_response_id=first.id, max_output_tokens=8, temperature=0
    )
    assert second.usage is not None and second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0
    kept = client.responses.retrieve(first.id)
    assert kept.output_text == first.output_text
    counted = client.responses.input_tokens.count(model=CHAT, input="Name a river.")
    assert counted.input_tokens == first.usage.input_tokens
    with client.responses.stream(model=CHAT, input="Name a river.", max_output_tokens=12, temperature=0) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == first.output_text
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_a_schema_holds(client: OpenAI) -> None:
    answer = client.responses.parse(model=CHAT, input="Describe the Rhine.", text_format=River, max_output_tokens=64)
    assert isinstance(answer.output_parsed, River)


def test_tools_are_called_as_they_must(client: OpenAI) -> None:
    answer = client.responses.create(
        model=CHAT, input="How is the weather?", tools=[LOOK], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = answer.output
    assert call.type == "function_call" and call.name == "look_up"
    arguments = json.loads(call.arguments)
    assert arguments["city"] in ("Bern", "Oslo") and isinstance(arguments["days"], int)
    patch: Any = {
        "type": "custom",
        "name": "colour",
        "description": "Sets a colour.",
        "format": {"type": "grammar", "syntax": "regex", "definition": "(red|green|blue)"},
    }
    answer = client.responses.create(
        model=CHAT,
        input="Make it red.",
        tools=[patch, LOOK],
        tool_choice={"type": "custom", "name": "colour"},
        parallel_tool_calls=False,
    )
    (custom,) = answer.output
    assert custom.type == "custom_tool_call" and custom.input in ("red", "green", "blue")
