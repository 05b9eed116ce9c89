"""The bodies of the Responses endpoints: every form of item and tool that clients send, and refusals by name."""

from typing import Any

import pytest
from pydantic import ValidationError

from penstock.serving.protocol.explain import explain
from penstock.serving.protocol.responses.body import CompactBody, InputTokensBody, ResponseBody
from penstock.serving.protocol.responses.items import ITEMS, ItemReference, MessageItem


def parse(**fields: Any) -> ResponseBody:
    return ResponseBody.model_validate({"model": "m", "input": "hi"} | fields)


def refusal(**fields: Any) -> tuple[str, str | None, str]:
    with pytest.raises(ValidationError) as caught:
        parse(**fields)
    problem = explain(caught.value)
    return problem.code, problem.param, problem.message


def test_items_in_every_form() -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "easy"},
        {"type": "message", "id": "msg_1", "role": "developer", "content": [{"type": "input_text", "text": "a"}]},
        {
            "type": "message",
            "id": "msg_2",
            "role": "assistant",
            "status": "completed",
            "phase": "final_answer",
            "content": [
                {"type": "output_text", "text": "b", "annotations": [], "logprobs": []},
                {"type": "refusal", "refusal": "no"},
            ],
        },
        {"type": "message", "role": "assistant", "content": None},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "c"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "text"},
        {"type": "function_call", "call_id": "c2", "name": "f", "namespace": "n", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_image", "image_url": "data:,"}]},
        {"type": "custom_tool_call", "call_id": "c3", "name": "g", "input": "free"},
        {"type": "custom_tool_call_output", "call_id": "c3", "output": [{"type": "input_text", "text": "d"}]},
        {"type": "item_reference", "id": "msg_9"},
        {"id": "msg_8"},
        {"type": "additional_tools", "role": "developer", "tools": [{"type": "function", "name": "h"}]},
        {"type": "compaction", "encrypted_content": "e"},
        {"type": "compaction_trigger"},
    ]
    body = parse(input=items)
    assert [item.type for item in body.input] == [
        item.get("type") or ("message" if "role" in item else "item_reference") for item in items
    ]
    assert isinstance(body.input[13], ItemReference)
    refused = body.input[2]
    assert isinstance(refused, MessageItem) and [part.text for part in refused.content] == ["b", "no"]
    assert [tool.type for tool in body.all_tools] == ["function"]
    assert ITEMS.validate_python(items) == body.input


def test_a_text_is_one_user_message_even_if_it_is_empty() -> None:
    (message,) = parse(input="").input
    assert isinstance(message, MessageItem) and (message.role, message.content[0].text) == ("user", "")


def test_all_kinds_of_tools_and_choices() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}
    tools: list[dict[str, Any]] = [
        {"type": "function", "name": "f", "strict": None, "parameters": None, "defer_loading": True},
        {"type": "custom", "name": "g", "format": grammar},
        {"type": "custom", "name": "t", "format": {"type": "text"}},
        {"type": "namespace", "name": "n", "description": "", "tools": [{"type": "function", "name": "f"}]},
        {"type": "web_search", "external_web_access": False},
    ]
    assert [tool.type for tool in parse(tools=tools).tools] == [tool["type"] for tool in tools]
    for choice in (
        "none",
        "required",
        {"type": "function", "name": "f"},
        {"type": "custom", "name": "g"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
    ):
        assert parse(tools=tools, tool_choice=choice).tool_choice != "auto"


@pytest.mark.parametrize(
    ("fields", "code", "param", "words"),
    [
        ({"input": [{"type": "web_search_call"}]}, "invalid_value", "input.0.type", "web_search_call"),
        ({"input": [5]}, "invalid_type", "input.0", "object"),
        ({"input": [{"role": "user"}]}, "missing_required_parameter", "input.0.content", "user"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
            "unsupported_parameter",
            "input.0.content.0.type",
            "input_image",
        ),
        ({"input": [{"type": "function_call_output", "output": ""}]}, "missing_required_parameter", None, "call_id"),
        ({"input": [{"type": "compaction_trigger"}, {"id": "x"}]}, "invalid_value", "input.0", "last"),
        ({"tools": [{"type": "web\nsearch"}]}, "string_pattern_mismatch", "tools.0.type", "tools.0.type"),
        ({"tools": [{"type": "✓"}]}, "string_pattern_mismatch", "tools.0.type", "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools.0.name", "name"),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]},
            "invalid_value",
            "tools.0.tools.0",
            "namespace",
        ),
        ({"tool_choice": {"type": "web_search"}}, "unsupported_parameter", "tool_choice.type", "web_search"),
        ({"tool_choice": "any"}, "invalid_value", "tool_choice", "required"),
        ({"text": {"format": {"type": "json_schema"}}}, "missing_required_parameter", "text.format.schema", "schema"),
        ({"safety_identifier": "x" * 65}, "string_above_max_length", "safety_identifier", "64"),
        ({"max_output_tokens": 0}, "integer_below_min_value", "max_output_tokens", "1"),
        ({"background": True, "store": False}, "invalid_value", "background", "stored"),
        (
            {"conversation": "c", "previous_response_id": "r"},
            "mutually_exclusive_parameters",
            "previous_response_id",
            "conversation",
        ),
        ({"reasoning": {"mode": "pro"}}, "unsupported_parameter", "reasoning.mode", "standard"),
        ({"prompt": {"id": "p"}}, "unsupported_parameter", "prompt", "stored prompts"),
        ({"moderation": {"model": "m"}}, "unsupported_parameter", "moderation", "moderation"),
        ({"context_management": [{"type": "compaction"}]}, "unsupported_parameter", "context_management", "compact"),
        ({"messages": []}, "unsupported_parameter", "messages", "'input'"),
        ({"max_tokens": 5}, "unsupported_parameter", "max_tokens", "max_output_tokens"),
        ({"response_format": {}}, "unsupported_parameter", "response_format", "text"),
        ({"reasoning_effort": "low"}, "unsupported_parameter", "reasoning_effort", "reasoning"),
        ({"never_heard_of": 1}, "unknown_parameter", "never_heard_of", "no such"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], code: str, param: str | None, words: str) -> None:
    got_code, got_param, message = refusal(**fields)
    assert got_code == code and words in message
    assert param is None or got_param == param


def test_lm_studios_strict_as_a_text_and_codex_text_without_format() -> None:
    strict = parse(text={"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": "true"}})
    assert strict.text.format.strict is True and strict.text.format.schema_ == {}
    assert parse(text={"verbosity": "low"}).text.format.type == "text"


def test_the_neighbours_take_their_own_fields() -> None:
    assert InputTokensBody.model_validate({"model": "m", "input": "hi", "tools": []}).input
    compact = CompactBody.model_validate({"model": "m", "input": "hi", "prompt_cache_key": "k", "service_tier": "flex"})
    assert compact.input
    with pytest.raises(ValidationError):
        CompactBody.model_validate({"model": "m", "input": "hi", "temperature": 1})
