"""Input items as messages of a chat template, tools under flat names, and what is dropped when a chat is too long."""

from typing import Any

import pytest

from penstock.serving.errors import ApiError
from penstock.serving.handlers.responses.fitting import shorter_conversations
from penstock.serving.handlers.responses.messages import SUMMARY_REQUEST, messages_of
from penstock.serving.handlers.responses.sealed import seal, unseal
from penstock.serving.handlers.responses.stored_items import stored_item
from penstock.serving.handlers.responses.toolbox import Toolbox
from penstock.serving.protocol.responses.body import ResponseBody
from penstock.serving.protocol.responses.items import ITEMS


def messages(*items: dict[str, Any], instructions: str | None = None, **options: Any) -> list[dict[str, Any]]:
    return messages_of(instructions, [], ITEMS.validate_python(list(items)), **options)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def call(call_id: str, name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": "{}"} | fields


def output(call_id: str, text: Any = "done") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def thinking(**fields: Any) -> dict[str, Any]:
    return {"type": "reasoning", "summary": []} | fields


def roles(found: list[dict[str, Any]]) -> str:
    return " ".join(message["role"] for message in found)


def test_neighbours_of_one_role_are_one_message() -> None:
    found = messages(
        {"role": "developer", "content": "a"},
        {"role": "system", "content": [{"type": "input_text", "text": "b"}, {"type": "input_text", "text": "c"}]},
        user("env"),
        user("hi"),
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two"},
        instructions="be brief",
    )
    assert found == [
        {"role": "system", "content": "be brief\n\na\n\nb\nc"},
        {"role": "user", "content": "env\n\nhi"},
        {"role": "assistant", "content": "one\ntwo"},
    ]


def test_calls_of_one_step_share_a_message_and_outputs_stand_behind_it() -> None:
    found = messages(
        user("go"),
        thinking(content=[{"type": "reasoning_text", "text": "hm"}]),
        {"role": "assistant", "content": "I will."},
        call("c1"),
        call("c2", "wait", namespace="agents"),
        output("c2", [{"type": "input_text", "text": "two"}, {"type": "input_image", "image_url": "data:,"}]),
        output("c1"),
        {"type": "custom_tool_call", "call_id": "c3", "name": "patch", "input": "***"},
        {"type": "custom_tool_call_output", "call_id": "c3", "output": "ok"},
        {"role": "assistant", "content": "Done."},
    )
    assert roles(found) == "user assistant tool tool assistant tool assistant"
    assert found[1]["content"] == "I will." and found[1]["reasoning_content"] == "hm"
    assert [c["function"]["name"] for c in found[1]["tool_calls"]] == ["f", "agents__wait"]
    assert found[2]["tool_call_id"] == "c2" and found[2]["content"].startswith("two\n[an image")
    assert found[4]["tool_calls"] == [{"id": "c3", "type": "custom", "custom": {"name": "patch", "input": "***"}}]
    assert found[6] == {"role": "assistant", "content": "Done."}


def test_an_output_is_put_behind_its_call_even_if_it_comes_late() -> None:
    found = messages(user("go"), call("c1"), user("are you there?"), output("c1"))
    assert roles(found) == "user assistant tool user"


def test_text_after_calls_is_a_message_of_its_own() -> None:
    found = messages(user("go"), call("c1"), {"role": "assistant", "content": "called"}, output("c1"))
    assert roles(found) == "user assistant tool assistant"


def test_an_output_without_a_call_is_refused_by_name() -> None:
    with pytest.raises(ApiError) as caught:
        messages(user("go"), output("nowhere"))
    assert caught.value.param == "input.1.call_id" and "nowhere" in caught.value.message


def test_thinking_is_found_wherever_it_is() -> None:
    def shown(**fields: Any) -> str | None:
        found: str | None = messages(user("go"), thinking(**fields), call("c"))[1].get("reasoning_content")
        return found

    assert shown(content=[{"type": "reasoning_text", "text": "a"}]) == "a"
    assert shown(encrypted_content=seal("reasoning", "b")) == "b"
    assert shown(summary=[{"type": "summary_text", "text": "c"}]) == "c"
    assert shown(encrypted_content="gAAAA-of-another-server") is None
    assert messages(user("go"), thinking(content=[{"type": "reasoning_text", "text": "cut"}]))[1] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "cut",
    }


def test_only_the_current_turns_thinking_is_shown_if_so_wished() -> None:
    thought = thinking(content=[{"type": "reasoning_text", "text": "hm"}])
    items = [user("one"), thought, {"role": "assistant", "content": "1"}, user("two"), thought, call("c"), output("c")]
    assert ["reasoning_content" in message for message in messages(*items)] == [False, True, False, True, False]
    shown = messages(*items, all_thinking=False)
    assert ["reasoning_content" in message for message in shown] == [False, False, False, True, False]


def test_a_compaction_is_the_summary_that_the_model_wrote() -> None:
    compaction = {"type": "compaction", "encrypted_content": seal("compaction", "we met")}
    found = messages(compaction, user("go on"))
    assert [message["content"] for message in found] == [SUMMARY_REQUEST, "we met", "go on"]
    assert roles(found) == "user assistant user"
    with pytest.raises(ApiError, match="another server") as caught:
        messages({"type": "compaction", "encrypted_content": "opaque"})
    assert caught.value.param == "input.0.encrypted_content"


def test_sealed_texts_open_only_with_their_mark() -> None:
    sealed = seal("reasoning", "thought ✓")
    assert unseal("reasoning", sealed) == "thought ✓"
    for other in (sealed.replace("reasoning", "compaction"), "", "gAAAA", sealed + "\N{SNOWMAN}", sealed[:-3]):
        assert unseal("reasoning", other) is None


def test_items_are_stored_as_the_model_saw_them_and_can_be_read_back() -> None:
    items = [
        user("hi"),
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}, {"type": "output_text", "text": "y"}]},
        thinking(encrypted_content="x", content=None),
        call("c1", namespace="n", id="fc_1", status="completed"),
        output("c1"),
        output("c1", [{"type": "input_text", "text": "t"}]),
    ]
    parsed = ITEMS.validate_python(items)
    stored = [stored_item(item) for item in parsed]
    assert stored[0]["content"] == [{"type": "input_text", "text": "hi"}]
    assert stored[1]["content"][0] == {"type": "refusal", "refusal": "no"}
    assert stored[2] == {"type": "reasoning", "summary": [], "encrypted_content": "x"}
    assert stored[3]["id"] == "fc_1" and stored[3]["namespace"] == "n"
    assert (stored[4]["output"], stored[5]["output"]) == ("done", [{"type": "input_text", "text": "t"}])
    assert messages_of(None, [], ITEMS.validate_python(stored)) == messages_of(None, [], parsed)


def toolbox(tools: list[dict[str, Any]], choice: Any = "auto") -> Toolbox:
    body = ResponseBody.model_validate({"model": "m", "input": "hi", "tools": tools, "tool_choice": choice})
    return Toolbox(body.all_tools, body.tool_choice)


FUNCTION = {"type": "function", "name": "look", "description": "Looks.", "strict": True, "parameters": {}}
CUSTOM = {
    "type": "custom",
    "name": "patch",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /a/"},
}
NAMESPACE = {
    "type": "namespace",
    "name": "agents",
    "description": "Sub-agents.",
    "tools": [{"type": "function", "name": "wait", "description": "Waits."}, {"type": "custom", "name": "say"}],
}


def test_namespaces_are_flattened_and_split_again() -> None:
    box = toolbox([FUNCTION, CUSTOM, NAMESPACE, {"type": "web_search"}, {"type": "web_search"}, {"type": "mcp"}])
    assert [tool.name for tool in box.tools] == ["look", "patch", "agents__wait", "agents__say"]
    assert box.tools[0].strict and box.tools[1].custom and box.tools[1].format is not None
    assert box.tools[2].description == "Sub-agents.\n\nWaits."
    assert box.split("agents__wait") == ("wait", "agents") and box.split("look") == ("look", None)
    assert box.not_offered == ["web_search", "mcp"]


def test_choices_are_resolved_to_flat_names() -> None:
    tools = [FUNCTION, CUSTOM, NAMESPACE]
    assert toolbox(tools, "required").choice.mode == "required"
    named = toolbox(tools, {"type": "function", "name": "look"}).choice
    assert (named.mode, named.allowed) == ("required", ("look",))
    inner = toolbox(tools, {"type": "custom", "name": "say", "namespace": "agents"}).choice
    assert inner.allowed == ("agents__say",)
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "namespace", "name": "agents"}]}
    assert toolbox(tools, allowed).choice.allowed == ("agents__wait", "agents__say")


@pytest.mark.parametrize(
    ("tools", "choice", "param", "words"),
    [
        ([FUNCTION, FUNCTION], "auto", "tools", "look"),
        ([{"type": "web_search"}], "required", "tool_choice", "required"),
        ([FUNCTION], {"type": "function", "name": "patch"}, "tool_choice", "patch"),
        ([CUSTOM], {"type": "function", "name": "patch"}, "tool_choice", "function"),
        ([], {"type": "custom", "name": "patch"}, "tool_choice", "none are given"),
    ],
)
def test_tools_that_cannot_be_are_refused(tools: list[dict[str, Any]], choice: Any, param: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        toolbox(tools, choice)
    assert caught.value.param == param and words in caught.value.message


def test_the_oldest_turns_go_first_and_every_rest_begins_with_a_user() -> None:
    chat = messages(
        {"role": "system", "content": "s"},
        user("one"),
        {"role": "assistant", "content": "1"},
        user("two"),
        call("c1"),
        output("c1"),
        call("c2"),
        output("c2"),
        {"role": "assistant", "content": "2"},
    )
    rests = [roles(rest) for rest in shorter_conversations(chat)]
    assert rests == [
        "system user assistant tool assistant tool assistant",
        "system user assistant tool assistant",
        "system user assistant",
    ]
    assert shorter_conversations(messages(user("only"))) == []
