"""Tools of chat completions: what the model is told, what it is held to, and how its calls are answered."""

import json
from typing import Any

import pytest
from fake_engine import CHAT, Front, error, events, open_front, use_template
from openai.lib.streaming.chat import FunctionToolCallArgumentsDoneEvent
from pydantic import BaseModel
from tokenizers import AddedToken

from penstock.serving.text.token_table import TokenTable

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PATCH = {
    "type": "custom",
    "custom": {"name": "patch", "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[ab]+"}}},
}
ROME = '{"city": "Rome"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ROME}}}\n</tool_call>'
ASK: Any = [{"role": "user", "content": "hi"}]


def grammar_of(front: Front) -> str:
    """The Lark grammar of the only job."""
    grammar = front.engine.job.sampling.grammar
    return str(json.loads(grammar)["grammars"][0]["lark_grammar"]) if grammar else ""


def prompt_of(front: Front) -> str:
    table = front.engine.tokenizer.table
    return "".join(table.name(token_id) for token_id in front.engine.job.prompt_token_ids)


def make_room(front: Front) -> None:
    for ready in front.engine.models.values():
        object.__setattr__(ready, "max_model_len", 10_000)
        object.__setattr__(ready, "num_kv_blocks", 10_000)


async def ask(front: Front, **fields: Any) -> Any:
    """The first choice of an answer."""
    make_room(front)
    front.engine.jobs.clear()
    response = await front.chat(**fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


@pytest.mark.parametrize("tokens_per_step", [1, 5, 1000])
async def test_a_call_is_answered_whole_and_streamed(tokens_per_step: int) -> None:
    async with open_front() as front:
        front.engine.text = f"I look.\n\n{CALL}\n{CALL.replace('Rome', 'Oslo')}"
        front.engine.tokens_per_step = tokens_per_step
        choice = await ask(front, tools=[WEATHER])
        first, second = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "I look."
        assert first == {"id": first["id"], "type": "function", "function": {"name": "weather", "arguments": ROME}}
        assert second["function"]["arguments"] == '{"city": "Oslo"}' and second["id"] != first["id"]
        chunks = [c["choices"][0] for c in events(await front.chat(tools=[WEATHER], stream=True))]
        assert chunks[0]["delta"] == {"role": "assistant", "content": ""}
        deltas = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", [])]
        starts = [delta for delta in deltas if "id" in delta]
        assert [delta["index"] for delta in starts] == [0, 1]
        assert all(delta["function"] == {"name": "weather", "arguments": ""} for delta in starts)
        for index, arguments in enumerate([ROME, '{"city": "Oslo"}']):
            parts = [d["function"]["arguments"] for d in deltas if d["index"] == index]
            assert "".join(parts) == arguments
        assert chunks[-1]["finish_reason"] == "tool_calls"


async def test_a_message_that_only_calls_has_no_content() -> None:
    async with open_front() as front:
        front.engine.text = CALL
        assert (await ask(front, tools=[WEATHER]))["message"]["content"] is None
        chunks = events(await front.chat(tools=[WEATHER], stream=True))
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}


async def test_one_call_ends_the_answer_where_calls_may_not_be_parallel() -> None:
    async with open_front() as front:
        front.engine.text = CALL + CALL + " and more text" * 20
        choice = await ask(front, tools=[WEATHER], parallel_tool_calls=False)
        assert len(choice["message"]["tool_calls"]) == 1 and choice["finish_reason"] == "tool_calls"
        assert front.engine.cancelled == [front.engine.job.request_id]


async def test_a_call_cut_by_the_limit_ends_by_length() -> None:
    async with open_front() as front:
        front.engine.text = CALL
        limit = len(front.engine.encode(CALL.partition("Ro")[0]))
        choice = await ask(front, tools=[WEATHER], max_tokens=limit)
        assert choice["finish_reason"] == "length"
        assert ROME.startswith(choice["message"]["tool_calls"][0]["function"]["arguments"])
        choice = await ask(front, tools=[WEATHER], max_tokens=4)
        assert choice["finish_reason"] == "length" and "tool_calls" not in choice["message"]


async def test_unknown_and_forbidden_tools_are_text() -> None:
    async with open_front() as front:
        front.engine.text = CALL
        other = {"type": "function", "function": {"name": "other"}}
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [other]}}
        for fields in ({"tools": [other]}, {"tools": [WEATHER, other], "tool_choice": allowed}):
            choice = await ask(front, **fields)
            assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
        choice = await ask(front, tools=[WEATHER], tool_choice="none")
        assert choice["message"]["content"] == CALL and "weather" not in prompt_of(front)


async def test_a_template_that_reads_tools_gets_them() -> None:
    async with open_front() as front:
        use_template(front, "{{ tools | tojson }}<tool_call>{{ messages[0].content }}")
        await ask(front, tools=[WEATHER])
        assert json.loads(prompt_of(front).removesuffix("<tool_call>hi")) == [WEATHER]


async def test_control_tokens_reach_the_parser_but_not_the_client() -> None:
    async with open_front() as front:
        tokenizer = front.engine.tokenizer._tokenizer
        tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True)])
        front.engine.tokenizer.table = TokenTable(tokenizer)
        use_template(front, "{{ tools }}[TOOL_CALLS]{{ messages[0].content }}")
        front.engine.text = f'[TOOL_CALLS][{{"name": "weather", "arguments": {ROME}}}]'
        choice = await ask(front, tools=[WEATHER])
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == ROME
        front.engine.text = "a [TOOL_CALLS] b"
        assert (await ask(front, tools=[WEATHER]))["message"]["content"] == "a  b"
        assert (await ask(front))["message"]["content"] == "a  b"


async def test_tokens_around_thinking_never_reach_the_client() -> None:
    async with open_front() as front:
        tokenizer = front.engine.tokenizer._tokenizer
        tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in ("[THINK]", "[/THINK]")])
        front.engine.tokenizer.table = TokenTable(tokenizer)
        use_template(front, "{{ messages[0].content }}{# [/THINK] #}")
        front.engine.text = "[THINK]hm[/THINK]a[/THINK]b[THINK]"
        message = (await ask(front))["message"]
        assert (message["reasoning"], message["content"]) == ("hm", "ab")


HISTORY = [
    *ASK,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ROME}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sun"}]},
]
CALLS = "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}"
AS_OBJECT = "{% for m in messages %}{{ m.content }}" + CALLS + "|{% endfor %}"
AS_TEXT = (
    "{% for m in messages %}{% if m.content is not none %}{{ m.content }}{% else %}{% for c in m.tool_calls %}"
    "{{ c.function.name + c.function.arguments }}{% endfor %}{% endif %}|{% endfor %}{{ tools }}"
)


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{{ tools }}" + AS_OBJECT, f'hi|{{"name": "weather", "arguments": {ROME}}}|sun|'),
        (AS_TEXT, f"hi|weather{ROME}|sun|"),
    ],
)
async def test_earlier_calls_have_the_form_that_the_template_wants(template: str, prompt: str) -> None:
    async with open_front() as front:
        use_template(front, template)
        await ask(front, messages=HISTORY)
        assert prompt_of(front) == prompt
        broken = json.loads(json.dumps(HISTORY).replace('{\\"city\\": \\"Rome\\"}', "no json"))
        assert (await front.chat(messages=broken)).status_code == 200


async def test_the_older_form_is_answered_in_the_older_form() -> None:
    async with open_front() as front:
        front.engine.text = CALL + CALL
        functions = [WEATHER["function"]]
        choice = await ask(front, functions=functions, function_call={"name": "weather"})
        assert choice["message"]["function_call"] == {"name": "weather", "arguments": ROME}
        assert choice["finish_reason"] == "function_call" and "tool_calls" not in choice["message"]
        assert "weather" in grammar_of(front)
        chunks = [c["choices"][0] for c in events(await front.chat(functions=functions, stream=True))]
        calls = [c["delta"]["function_call"] for c in chunks if "function_call" in c["delta"]]
        assert calls[0] == {"name": "weather", "arguments": ""}
        assert "".join(call["arguments"] for call in calls) == ROME
        assert chunks[-1]["finish_reason"] == "function_call"
        ids = "{{ m.tool_call_id }}{% for c in m.tool_calls %}{{ c.id }}{{ c.function.arguments }}{% endfor %}"
        use_template(front, "{% for m in messages %}" + ids + ";{% endfor %}{{ tools }}")
        history = [
            *ASK,
            {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": ROME}},
            {"role": "function", "name": "weather", "content": "sun"},
        ]
        await ask(front, messages=history, functions=functions, function_call="none")
        assert prompt_of(front) == f";call_1{ROME};call_1;"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"function_call": {"name": "weather"}}, "function_call"),
        ({"function_call": {"name": "weather"}, "tools": [WEATHER]}, "function_call"),
        ({"function_call": "none", "tools": [WEATHER]}, "function_call"),
        ({"tool_choice": "required", "functions": [WEATHER["function"]]}, "tool_choice"),
    ],
)
async def test_a_choice_among_what_is_not_there_is_refused(fields: dict[str, Any], param: str) -> None:
    async with open_front() as front:
        error(await front.chat(**fields), 400, "invalid_value", param)
        await ask(front, function_call="none")


async def test_custom_tools_are_called_with_text() -> None:
    async with open_front() as front:
        front.engine.text = '<custom_tool_call name="patch">\nab\n</custom_tool_call>'
        choice = await ask(front, tools=[PATCH, WEATHER])
        (call,) = choice["message"]["tool_calls"]
        assert call == {"id": call["id"], "type": "custom", "custom": {"name": "patch", "input": "ab"}}
        assert "[ab]+" in prompt_of(front) and "[ab]+" in grammar_of(front)
        chunks = [c["choices"][0] for c in events(await front.chat(tools=[PATCH], stream=True))]
        calls = [c["delta"]["tool_calls"][0] for c in chunks if "tool_calls" in c["delta"]]
        assert calls[0]["type"] == "custom" and calls[0]["custom"] == {"name": "patch", "input": ""}
        assert "".join(call["custom"]["input"] for call in calls) == "ab"
        history = [*ASK, choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "done"}]
        await ask(front, messages=history, tools=[PATCH])
        assert front.engine.text in prompt_of(front) and "done" in prompt_of(front)


STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("fields", "starts", "has"),
    [
        ({"tools": [WEATHER]}, "", ""),
        ({"tools": [WEATHER], "tool_choice": "none"}, "", ""),
        ({"tools": [WEATHER], "tool_choice": "required"}, "start:  (", "city"),
        ({"tools": [WEATHER], "tool_choice": NAMED}, "start:  (", "city"),
        ({"tools": [STRICT]}, "start:  (marked_0)* TEXT", "city"),
        ({"tools": [STRICT], "parallel_tool_calls": False}, "start:  (marked_0 | TEXT)", "city"),
        ({"tools": [WEATHER], "regex": "a+"}, "start:  (((", "answer: /a+/"),
        ({"tools": [WEATHER], "tool_choice": "none", "regex": "a+"}, "start: /a+/", ""),
        ({"regex": "a+"}, "start: /a+/", ""),
    ],
)
async def test_the_output_is_held_to_what_the_request_demands(fields: dict[str, Any], starts: str, has: str) -> None:
    async with open_front() as front:
        await ask(front, **fields)
        grammar = grammar_of(front)
        assert grammar.startswith(starts) and has in grammar and bool(grammar) == bool(starts)


async def test_thinking_may_come_before_what_is_demanded() -> None:
    async with open_front() as front:
        use_template(front, "{{ messages[0].content }}<think>{# </think> #}")
        front.engine.text = f"hm</think>\n\n{CALL}"
        choice = await ask(front, tools=[WEATHER], tool_choice="required")
        assert choice["message"]["reasoning"] == "hm" and choice["message"]["tool_calls"]
        assert grammar_of(front).startswith("start: thought gap")
        await ask(front, response_format={"type": "json_object"})
        assert grammar_of(front).startswith("start: thought gap  answer")


def tool_with(parameters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **fields}}


async def test_schemas_that_cannot_be_enforced_are_loose_where_nothing_is_strict() -> None:
    async with open_front() as front:
        await ask(front, tools=[tool_with({"not": {"type": "string"}})], tool_choice="required")
        assert '"type": "object"}' in grammar_of(front) and "not" not in grammar_of(front)
        assert front.engine.job.sampling.grammar_fallback == ""
        # What only the compiler can find out, the worker tries.
        odd = {"type": "object", "properties": {"x": {"pattern": "(?=a)b"}}}
        await ask(front, tools=[tool_with(odd)], tool_choice="required")
        assert "(?=a)b" in grammar_of(front)
        fallback = front.engine.job.sampling.grammar_fallback
        assert '"type": "object"}' in json.loads(fallback)["grammars"][0]["lark_grammar"] and "(?=a)b" not in fallback
        await ask(front, tools=[tool_with(odd, strict=True)], tool_choice="required")
        assert front.engine.job.sampling.grammar_fallback == ""


async def test_faults_of_schemas_and_grammars_name_their_tool() -> None:
    async with open_front() as front:
        bad = {"properties": {"x": {"type": "objekt"}}}
        for fields in ({}, {"tool_choice": "required"}):
            answer = await front.chat(tools=[WEATHER, tool_with(bad)], **fields)
            message = error(answer, 400, "invalid_json_schema", "tools.1.function.parameters")
            assert "'/properties/x/type'" in message and "objekt" in message
        assert (await front.chat(tools=[tool_with(bad)], tool_choice="none")).status_code == 200
        await ask(front, tools=[PATCH, STRICT, tool_with({})], tool_choice="required")
        sampling = front.engine.job.sampling
        fields_of_rules = {"tools.0.custom.format", "tools.1.function.parameters", "tools.2.function.parameters"}
        assert sampling.grammar_param == "tools" and set(sampling.grammar_params.values()) == fields_of_rules
        assert all(f"{rule}: " in grammar_of(front) for rule in sampling.grammar_params)


async def test_a_choice_of_one_name_is_one_call() -> None:
    async with open_front() as front:
        front.engine.text = CALL + CALL
        only = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
        for choice in (NAMED, only, "required"):  # the last since the template knows no tools
            answer = await ask(front, tools=[WEATHER], tool_choice=choice)
            assert len(answer["message"]["tool_calls"]) == 1
        use_template(front, "{{ tools }}<tool_call>{{ messages[0].content }}")
        assert len((await ask(front, tools=[WEATHER], tool_choice="required"))["message"]["tool_calls"]) == 2
        assert len((await ask(front, tools=[WEATHER], tool_choice=NAMED))["message"]["tool_calls"]) == 1


async def test_verbosity_reaches_templates_that_read_it() -> None:
    async with open_front() as front:
        use_template(front, "{{ messages[0].content }}{{ verbosity }}")
        await ask(front, verbosity="low")
        assert prompt_of(front) == "hilow"


async def test_a_stored_answer_is_found_again() -> None:
    async with open_front() as front:
        make_room(front)
        completions = front.openai.chat.completions
        answer = await completions.create(model=CHAT, messages=ASK, store=True, metadata={"k": "v"})
        kept = await completions.retrieve(answer.id)
        assert kept.choices == answer.choices and kept.metadata == {"k": "v"}  # type: ignore[attr-defined]
        front.engine.text = CALL
        stream = await completions.create(model=CHAT, messages=ASK, tools=[WEATHER], store=True, stream=True)  # type: ignore[list-item]
        (streamed,) = {chunk.id async for chunk in stream}
        kept = await completions.retrieve(streamed)
        assert kept.choices[0].finish_reason == "tool_calls" and kept.choices[0].message.tool_calls
        unkept = await completions.create(model=CHAT, messages=ASK)
        error(
            await front.http.get(f"/v1/chat/completions/{unkept.id}"), 404, "chat_completion_not_found", "completion_id"
        )


async def test_the_service_tier_is_answered_if_it_is_sent() -> None:
    async with open_front() as front:
        assert (await front.chat(service_tier="auto")).json()["service_tier"] == "default"
        assert "service_tier" not in (await front.chat()).json()


class City(BaseModel):
    city: str


async def test_the_official_client_reads_calls_and_forms() -> None:
    async with open_front() as front:
        make_room(front)
        front.engine.text = CALL
        completions = front.openai.chat.completions
        tools: Any = [{"type": "function", "function": {**STRICT["function"]}}]  # type: ignore[dict-item]
        answer = await completions.create(model=CHAT, messages=ASK, tools=tools, n=2, logprobs=True)
        assert all(choice.message.tool_calls for choice in answer.choices)
        stream = await completions.create(model=CHAT, messages=ASK, tools=tools, stream=True)
        assert [c async for c in stream][-1].choices[0].finish_reason == "tool_calls"
        async with completions.stream(model=CHAT, messages=ASK, tools=tools) as helper:
            seen = [event async for event in helper]
            final = await helper.get_final_completion()
        assert any(isinstance(event, FunctionToolCallArgumentsDoneEvent) for event in seen)
        assert final.choices[0].message.tool_calls is not None
        assert final.choices[0].message.tool_calls[0].function.arguments == ROME
        front.engine.text = ROME
        parsed = await completions.parse(model=CHAT, messages=ASK, response_format=City)
        assert parsed.choices[0].message.parsed == City(city="Rome")
        async with completions.stream(model=CHAT, messages=ASK, response_format=City) as helper:
            assert (await helper.get_final_completion()).choices[0].message.parsed == City(city="Rome")
