"""Every request at fault is a 400 (or 404, 405, 413) with OpenAI's body, and the server goes on."""

from typing import Any

import pytest
from fake_engine import BARE, CHAT, EMBED, error, model_ready, open_front, use_template
from pydantic import ValidationError

from penstock.scheduler.messages import JobError, ModelFailed, RequestOutput
from penstock.serving.errors import JobFailedError, translate
from penstock.serving.protocol.body import Refused, RequestBody, Tolerated
from penstock.serving.protocol.chat import ChatCompletionBody, ChatMessage
from penstock.serving.protocol.other_fields import CHAT as CHAT_FATES

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
DEEP = b'{"metadata": ' + b"[" * 128 + b"]" * 128 + b"}"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b'{"a": "\xff"}', b"[]", b"null", b'"x"', b'{"temperature": NaN}', b"[" * 3000, DEEP],
)
async def test_bodies_that_are_no_json_object(path: str, content: bytes) -> None:
    async with open_front() as front:
        error(await front.http.post(path, content=content), 400, "invalid_json", None)
        assert (await front.chat()).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "field",
    [
        b'"user": "\\ud800"',
        b'"seed": 1' + b"0" * 400,
        b'"metadata": ' + b"[" * 500 + b"]" * 500,
        b'"metadata": ' + b'{"a":' * 500 + b"1" + b"}" * 500,
        b'"wand": 1, "wand": 2',
        b'"model": "' + EMBED.encode() + b'", "model": 5',
    ],
    ids=["surrogate", "huge", "arrays", "objects", "twice", "last-wins"],
)
async def test_hostile_json_is_a_fault_of_the_request(path: str, field: bytes) -> None:
    async with open_front() as front:
        response = await front.http.post(path, content=b"{" + field + b"}")
        assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
        assert (await front.chat()).status_code == 200


@pytest.mark.parametrize("declared", [True, False])
async def test_too_large_body(declared: bool) -> None:
    async with open_front(max_body_bytes=1000) as front:

        async def pieces() -> Any:
            for _ in range(20):
                yield b" " * 100

        content = b" " * 2000 if declared else pieces()
        response = await front.http.post("/v1/completions", content=content)
        assert "1000" in error(response, 413, "request_too_large", None)


PICTURE = [{"type": "image_url", "image_url": {"url": "x"}}]


def said(content: Any, **fields: Any) -> dict[str, Any]:
    """A chat of one user message."""
    return {"messages": [{"role": "user", "content": content} | fields]}


def tool(name: str, **fields: Any) -> dict[str, Any]:
    """A function tool."""
    return {"type": "function", "function": {"name": name} | fields}


CHAT_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"model": None}, "missing_required_parameter", "model"),
    ({"model": 5}, "invalid_type", "model"),
    ({"messages": None}, "missing_required_parameter", "messages"),
    ({"messages": []}, "empty_array", "messages"),
    ({"messages": "hi"}, "invalid_type", "messages"),
    ({"messages": ["hi"]}, "invalid_type", "messages.0"),
    ({"messages": [{"content": "x"}]}, "missing_required_parameter", "messages.0.role"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid_value", "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages.0.content"),
    (said(5), "invalid_type", "messages.0.content"),
    (said([5]), "invalid_type", "messages.0.content.0"),
    (said([{"type": "text"}]), "missing_required_parameter", "messages.0.content.0.text"),
    (said(PICTURE), "unsupported_parameter", "messages.0.content.0.type"),
    (said("x", wand=1), "unknown_parameter", "messages.0.wand"),
    ({"temperature": 2.1}, "decimal_above_max_value", "temperature"),
    ({"temperature": -1}, "decimal_below_min_value", "temperature"),
    ({"temperature": "hot"}, "invalid_type", "temperature"),
    ({"temperature": True}, "invalid_type", "temperature"),
    ({"top_p": 1.5}, "decimal_above_max_value", "top_p"),
    ({"presence_penalty": 3}, "decimal_above_max_value", "presence_penalty"),
    ({"frequency_penalty": -3}, "decimal_below_min_value", "frequency_penalty"),
    ({"repetition_penalty": 0}, "decimal_below_min_value", "repetition_penalty"),
    ({"top_k": -2}, "integer_below_min_value", "top_k"),
    ({"min_p": 2}, "decimal_above_max_value", "min_p"),
    ({"n": 0}, "integer_below_min_value", "n"),
    ({"n": 129}, "integer_above_max_value", "n"),
    ({"n": 1.5}, "invalid_type", "n"),
    ({"seed": 2**63}, "integer_above_max_value", "seed"),
    ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
    ({"max_tokens": -2}, "integer_below_min_value", "max_tokens"),
    ({"max_tokens": "5"}, "invalid_type", "max_tokens"),
    ({"max_completion_tokens": 0}, "integer_below_min_value", "max_completion_tokens"),
    ({"min_tokens": 6, "max_tokens": 5}, "integer_above_max_value", "min_tokens"),
    ({"stop": ""}, "empty_string", "stop.0"),
    ({"stop": ["a"] * 17}, "array_above_max_length", "stop"),
    ({"stop": ["a" * 1025]}, "string_above_max_length", "stop.0"),
    ({"stop": [5]}, "invalid_type", "stop.0"),
    ({"stream": "yes"}, "invalid_type", "stream"),
    ({"stream_options": {"include_usage": 1}}, "invalid_type", "stream_options.include_usage"),
    ({"stream_options": {"x": 1}}, "unknown_parameter", "stream_options.x"),
    ({"logit_bias": {"a": 1}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {"1": 101}}, "invalid_value", "logit_bias.1"),
    ({"logit_bias": {"1": True}}, "invalid_value", "logit_bias.1"),
    ({"logit_bias": [1]}, "invalid_type", "logit_bias"),
    ({"logit_bias": {"320": 1}}, "invalid_value", "logit_bias"),
    ({"stop_token_ids": [320]}, "invalid_value", "stop_token_ids"),
    ({"top_logprobs": 3}, "invalid_value", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "integer_above_max_value", "top_logprobs"),
    ({"reasoning_effort": "huge"}, "invalid_value", "reasoning_effort"),
    ({"chat_template_kwargs": {"messages": []}}, "invalid_value", "chat_template_kwargs.messages"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "invalid_value", "continue_final_message"),
    ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools.0.function"),
    ({"tools": [{"type": "web_search"}]}, "invalid_value", "tools.0"),
    ({"tools": [tool("f"), tool("f")]}, "invalid_value", "tools"),
    ({"tools": [tool("a b")]}, "string_pattern_mismatch", "tools.0.function.name"),
    ({"tools": [tool("f", wand=1)]}, "unknown_parameter", "tools.0.function.wand"),
    ({"tools": [tool("f", parameters=[])]}, "invalid_type", "tools.0.function.parameters"),
    (
        {"tools": [tool("f", parameters={"not": {}}, strict=True)]},
        "invalid_json_schema",
        "tools.0.function.parameters",
    ),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({"tool_choice": "always"}, "invalid_value", "tool_choice"),
    ({"tools": [tool("f")], "tool_choice": {"type": "function"}}, "missing_required_parameter", "tool_choice.function"),
    (
        {"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "invalid_value",
        "tool_choice",
    ),
    ({"tool_choice": {"type": "allowed_tools"}}, "missing_required_parameter", "tool_choice.allowed_tools"),
    ({"tool_choice": {"type": "web_search"}}, "invalid_value", "tool_choice"),
    ({"functions": [{}]}, "missing_required_parameter", "functions.0.name"),
    ({"functions": [{"name": "f"}], "tools": [tool("f")]}, "invalid_value", "functions"),
    ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "invalid_value", "tool_choice"),
    (said("x", tool_calls=[{"function": {"name": "f"}}]), "invalid_value", "messages.0.tool_calls"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"type": "custom"}]}]},
        "missing_required_parameter",
        "messages.0.tool_calls.0.custom",
    ),
    ({"metadata": {"k": 1}}, "invalid_type", "metadata.k"),
    ({"ttl": -1}, "integer_below_min_value", "ttl"),
    ({"moderation": {}}, "unsupported_parameter", "moderation"),
    ({"response_format": {"type": "json_object"}, "regex": "a"}, "invalid_value", "regex"),
    ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
    ({"modalities": ["text", "audio"]}, "unsupported_parameter", "modalities"),
    ({"audio": {"voice": "x"}}, "unsupported_parameter", "audio"),
    ({"web_search_options": {}}, "unsupported_parameter", "web_search_options"),
    ({"prediction": {"type": "content", "content": "x"}}, "unsupported_parameter", "prediction"),
    ({"service_tier": "priority"}, "unsupported_parameter", "service_tier"),
    ({"store": "yes"}, "invalid_type", "store"),
    ({"mirostat": 2}, "unknown_parameter", "mirostat"),
]


@pytest.mark.parametrize(("fields", "code", "param"), CHAT_FAULTS, ids=lambda value: str(value)[:60])
async def test_chat_faults_name_code_and_param(fields: dict[str, Any], code: str, param: str) -> None:
    async with open_front() as front:
        error(await front.chat(**fields), 400, code, param)
        assert not front.engine.jobs


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"enable_thinking": True}, "enable_thinking"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"verbosity": "high"}, "verbosity"),
        ({"chat_template_kwargs": {"mood": "happy", "tone": 1}}, "chat_template_kwargs.tone"),
        ({"chat_template_kwargs": {"namespace": 1}}, "chat_template_kwargs.namespace"),
    ],
)
async def test_variables_that_the_template_does_not_read_are_refused(fields: dict[str, Any], param: str) -> None:
    async with open_front() as front:
        use_template(front, "{% set ns = namespace() %}{{ messages[0].content }}{{ mood }}{{ eos_token }}")
        message = error(await front.chat(**fields), 400, "unsupported_parameter", param)
        assert message.endswith("Variables of that template: eos_token, mood.")
        assert not front.engine.jobs


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": None}, "missing_required_parameter", "prompt"),
        ({"prompt": ""}, "empty_string", "prompt"),
        ({"prompt": []}, "empty_array", "prompt"),
        ({"prompt": ["a", ""]}, "empty_string", "prompt.1"),
        ({"prompt": [[]]}, "empty_array", "prompt.0"),
        ({"prompt": [1, "a"]}, "invalid_type", "prompt.0"),
        ({"prompt": {"a": 1}}, "invalid_type", "prompt"),
        ({"prompt": [400]}, "invalid_value", "prompt"),
        ({"prompt": ["a"] * 100, "n": 100}, "array_above_max_length", "prompt"),
        ({"logprobs": 21}, "integer_above_max_value", "logprobs"),
        ({"prompt_logprobs": -1}, "integer_below_min_value", "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "invalid_value", "prompt_logprobs"),
        ({"suffix": "end", "logprobs": 1, "echo": True}, "invalid_value", "echo"),
        ({"suffix": "end"}, "unsupported_parameter", "suffix"),
        ({"best_of": 21}, "integer_above_max_value", "best_of"),
        ({"best_of": 2, "n": 3}, "invalid_value", "best_of"),
        ({"best_of": 2, "stream": True}, "invalid_value", "best_of"),
        ({"prompt": ["a"] * 100, "best_of": 20}, "array_above_max_length", "prompt"),
        ({"max_tokens": -2}, "integer_below_min_value", "max_tokens"),
    ],
)
async def test_completion_faults_name_code_and_param(fields: dict[str, Any], code: str, param: str) -> None:
    async with open_front() as front:
        error(await front.complete(**fields), 400, code, param)
        assert not front.engine.jobs


async def test_too_long_prompts_say_both_numbers() -> None:
    async with open_front() as front:
        response = await front.complete(prompt=[5] * 100_000)
        message = error(response, 400, "context_length_exceeded", "prompt")
        assert "100000" in message and "256" in message
        message = error(await front.complete(prompt=["a", "b " * 300]), 400, "context_length_exceeded", "prompt.1")
        text = "hello " * 20_000
        response = await front.chat(messages=[{"role": "user", "content": text}])
        assert "256" in error(response, 400, "context_length_exceeded", "messages")
        front.engine.models[CHAT] = model_ready(CHAT, num_kv_blocks=1)
        assert "KV cache" in error(await front.complete(prompt=[5] * 16), 400, "context_length_exceeded", "prompt")
        assert not front.engine.jobs


@pytest.mark.parametrize("path", PATHS)
async def test_unknown_model_lists_the_served_ones(path: str) -> None:
    async with open_front() as front:
        body = {"model": "gpt-4", "messages": [{"role": "user", "content": "x"}]}
        if path != PATHS[0]:
            body = {"model": "gpt-4", "prompt": "x"} if path == PATHS[1] else {"model": "gpt-4", "input": "x"}
        message = error(await front.post(path, body), 404, "model_not_found", "model")
        assert CHAT in message and EMBED in message


async def test_models_of_the_wrong_kind_name_the_right_one() -> None:
    async with open_front() as front:
        assert "/v1/embeddings" in error(await front.chat(model=EMBED), 400, "model_not_supported", "model")
        assert EMBED in error(await front.embed(model=CHAT), 400, "model_not_supported", "model")
        assert "/v1/completions" in error(await front.chat(model=BARE), 400, "model_not_supported", "model")


async def test_models_that_cannot_be_loaded() -> None:
    async with open_front() as front:
        del front.engine.models[CHAT]
        front.engine.failed[CHAT] = ModelFailed(CHAT, "no such file")
        for response in (await front.chat(), await front.http.get(f"/v1/models/{CHAT}")):
            message = error(response, 404, "model_not_found", "model")
            assert "could not be loaded: no such file. Served models: tiny-bare, tiny-embed." in message
            assert "retry-after" not in response.headers
        del front.shelf[BARE]  # its text side cannot be read: the card's folder is no folder
        assert "tiny-bare is not a folder" in error(await front.chat(model=BARE), 404, "model_not_found", "model")
        health = (await front.http.get("/health")).json()
        assert (health["models"], health["failed"].keys()) == ([BARE, EMBED], {BARE, CHAT})


async def test_a_model_that_the_worker_does_not_know_is_404() -> None:
    async with open_front() as front:
        fault = JobError("no model tiny-chat", "model_not_found", "model", 404)
        front.engine.script = lambda job: [RequestOutput(job.request_id, [], 0, "error", error=fault)]
        error(await front.chat(), 404, "model_not_found", "model")


async def test_unknown_urls_and_methods() -> None:
    async with open_front() as front:
        error(await front.http.get("/v2/nothing"), 404, "unknown_url", None)
        response = await front.http.get("/v1/completions")
        assert "POST" in error(response, 405, "method_not_allowed", None)
        assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("stream", [False, True])
async def test_job_errors_before_the_first_token_have_their_status(stream: bool) -> None:
    async with open_front() as front:
        fault = JobError("the block pool is too small", "context_length_exceeded", "messages", 400)
        front.engine.script = lambda job: [RequestOutput(job.request_id, [], 0, "error", error=fault)]
        error(await front.chat(stream=stream), 400, "context_length_exceeded", "messages")
        error(await front.chat(stream=stream, n=3), 400, "context_length_exceeded", "messages")
        front.engine.embed_error = JobError("out of memory", "internal_error", None, 500)
        error(await front.embed(), 500, "internal_error", None)


async def test_our_own_faults_are_told_without_details() -> None:
    async with open_front() as front:

        def broken(job: object) -> Any:
            raise RuntimeError("secret")

        front.engine._send = broken  # type: ignore[method-assign]
        for response in (await front.chat(), await front.chat(stream=True), await front.embed()):
            assert "secret" not in error(response, 500, "internal_error", None)


async def test_request_ids_are_kept_if_sane() -> None:
    async with open_front() as front:
        for sent, kept in [("abc-1.2:3", True), ("a b", False), ("x" * 200, False)]:
            response = await front.http.get("/health", headers={"x-request-id": sent})
            assert (response.headers["x-request-id"] == sent) is kept


def test_translation_of_a_job_error() -> None:
    translated = translate(JobFailedError(JobError("m", "c", "p", 503)))
    assert (translated.message, translated.code, translated.param, translated.status) == ("m", "c", "p", 503)
    assert translated.headers["retry-after"]


async def test_only_the_first_of_many_faults_is_looked_at() -> None:
    async with open_front() as front:
        response = await front.chat(messages=[5] * 300_000)
        error(response, 400, "invalid_type", "messages.0")
        response = await front.chat(messages=[{"role": "user", "content": [5] * 300_000}])
        error(response, 400, "invalid_type", "messages.0.content.0")
        assert len(error(await front.chat(n=["x" * 10_000] * 100), 400, "invalid_type", "n")) < 200


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ChatCompletionBody, {"model": "m", "messages": [{}] * 100}),
        (ChatMessage, {"role": "user", "content": [{}] * 100}),
    ],
)
def test_long_lists_fail_fast(kind: type[RequestBody], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() <= 2


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/v1/messages/none", {}, {"type": "error", "error": {"type": "not_found_error"}, "request_id": "mine"}),
        ("/v1/models/none", {"anthropic-version": "2023-06-01"}, {"type": "error", "request_id": "mine"}),
        ("/api/v1/none", {}, {"error": {"type": "invalid_request", "code": "unknown_url"}}),
        ("/api/v0/none", {}, {"error": {"type": "invalid_request_error", "code": "unknown_url"}}),
    ],
)
async def test_the_form_of_an_error_is_that_of_the_protocol(
    path: str, headers: dict[str, str], expected: dict[str, Any]
) -> None:
    async with open_front() as front:
        response = await front.http.get(path, headers=headers | {"x-request-id": "mine"})
        assert response.status_code == 404 and response.headers["request-id"] == "mine"
        body = response.json()
        assert {name: body[name] for name in expected if name != "error"} | {"error": {}} == expected | {"error": {}}
        assert expected.get("error", {}).items() <= body["error"].items()


@pytest.mark.parametrize("name", [name for name in CHAT_FATES if name not in ChatCompletionBody.executed_fields])
async def test_a_chat_field_that_is_not_executed_is_taken_or_says_why_not(name: str) -> None:
    async with open_front() as front:
        fate = CHAT_FATES[name]
        if isinstance(fate, Tolerated) and fate.only is None:
            assert (await front.chat(**{name: "x"})).status_code == 200
            return
        message = error(await front.chat(**{name: {"x": 1}}), 400, "unsupported_parameter", name)
        assert fate.reason in message
        if isinstance(fate, Refused):
            assert fate.remedy in message
        else:
            assert "leave it out" in message
            for value in fate.only or ():
                assert (await front.chat(**{name: value})).status_code == 200
