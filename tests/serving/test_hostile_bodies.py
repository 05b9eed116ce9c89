"""Bodies that a client with a valid key may send to hurt others: each is refused by a limit that it can read."""

import asyncio
import gzip
import json
from typing import Any

import pytest
from fake_engine import CHAT, EMBED, error, events, open_front, use_template

from penstock.serving.handlers import logprobs, turn_prompt

MESSAGE = {"role": "user", "content": "hi"}
PART = {"type": "text", "text": "a"}
BLOCKS = [{"type": "text", "text": "a"}] * 2049
CALL = {"id": "c", "type": "function", "function": {"name": "f"}}
CHATS = "/v1/chat/completions"
CASES: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    "messages": (CHATS, {"messages": [MESSAGE] * 10_001}, "array_above_max_length", "messages", "10000"),
    "parts": (
        CHATS,
        {"messages": [{"role": "user", "content": [PART] * 2049}]},
        "array_above_max_length",
        "messages.0.content",
        "2048",
    ),
    "calls": (
        CHATS,
        {"messages": [{"role": "assistant", "tool_calls": [CALL] * 1025}, MESSAGE]},
        "array_above_max_length",
        "messages.0.tool_calls",
        "1024",
    ),
    "biases": (
        CHATS,
        {"messages": [MESSAGE], "logit_bias": {str(i): 1 for i in range(1025)}},
        "object_above_max_properties",
        "logit_bias",
        "1024",
    ),
    "items": ("/v1/responses", {"input": [MESSAGE] * 10_001}, "array_above_max_length", "input", "10000"),
    "item parts": (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}] * 2049}]},
        "array_above_max_length",
        "input.0.content",
        "2048",
    ),
    "user": ("/v1/responses", {"input": "hi", "user": "u" * 513}, "string_above_max_length", "user", "512"),
    "cache key": (
        "/v1/responses",
        {"input": "hi", "prompt_cache_key": "u" * 513},
        "string_above_max_length",
        "prompt_cache_key",
        "512",
    ),
    "native parts": (
        "/api/v1/chat",
        {"input": [{"type": "text", "content": "a"}] * 2049},
        "array_above_max_length",
        "input",
        "2048",
    ),
    "native ttl": ("/api/v1/chat", {"input": "a", "ttl": 2**31}, "integer_above_max_value", "ttl", "2147483648"),
}


@pytest.mark.parametrize("what", CASES)
async def test_counts_are_bounded(what: str) -> None:
    path, fields, code, param, limit = CASES[what]
    async with open_front() as front:
        response = await front.post(path, {"model": CHAT} | fields)
        assert response.status_code == 400, response.text
        details = response.json()["error"]
        assert (details["code"], details["param"]) == (code, param)
        assert limit in details["message"]
        assert front.engine.jobs == []


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [MESSAGE] * 10_001},
        {"messages": [{"role": "user", "content": BLOCKS}]},
        {"messages": [MESSAGE], "tools": [{"name": f"t{i}", "input_schema": {}} for i in range(1025)]},
    ],
)
async def test_counts_are_bounded_in_anthropics_form(fields: dict[str, Any]) -> None:
    async with open_front() as front:
        response = await front.post("/v1/messages", {"model": CHAT, "max_tokens": 1} | fields)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"
        assert "too long. Send at most" in response.json()["error"]["message"]


async def test_millions_of_values_are_not_read() -> None:
    async with open_front() as front:
        for path, value, count in ((CHATS, b"{}", 100_001), ("/v1/embeddings", b"1", 1_500_001)):
            raw = b'{"model": "x", "input": [' + b",".join([value] * count) + b"]}"
            response = await front.http.post(path, content=raw)
            assert "at most" in error(response, 413, "request_too_large", None)


NO_JSON = ("NaN", "Infinity", "-1e400", "9" * 4000, '"\\ud800"', '"\xff"', '"\x00"', "[" * 100_000)


@pytest.mark.parametrize("text", NO_JSON)
async def test_what_is_no_json_is_refused(text: str) -> None:
    async with open_front() as front:
        raw = b'{"model": "%s", "messages": [], "seed": %s}' % (CHAT.encode(), text.encode("latin-1"))
        error(await front.http.post(CHATS, content=raw), 400, "invalid_json", None)


@pytest.mark.parametrize("headers", [{"content-encoding": "gzip"}, {"transfer-encoding": "gzip, chunked"}])
async def test_packed_bodies_are_refused(headers: dict[str, str]) -> None:
    async with open_front() as front:
        body = gzip.compress(json.dumps({"model": EMBED, "input": "a"}).encode())
        response = await front.http.post("/v1/embeddings", content=body, headers=headers)
        assert "gzip" in error(response, 415, "unsupported_content_encoding", None)


async def test_a_page_of_another_site_cannot_send_a_form() -> None:
    async with open_front() as front:
        body = json.dumps({"model": CHAT, "messages": [MESSAGE]})

        async def status(**headers: str) -> int:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            return (await front.http.post(CHATS, content=body, headers=names)).status_code

        assert await status(content_type="text/plain", origin="https://evil.example") == 415
        assert await status(origin="https://evil.example") == 415
        assert await status(content_type="application/json; charset=utf-8", origin="https://evil.example") == 200
        assert await status(content_type="application/x-www-form-urlencoded") == 200, "curl -d"


async def test_a_name_that_is_not_known_is_not_sent_back_whole() -> None:
    async with open_front() as front:
        response = await front.chat(model="m" * 100_000)
        assert response.status_code == 404 and len(response.text) < 1000


@pytest.mark.parametrize("fields", [{"prompt_logprobs": 20}, {"echo": True, "logprobs": 20, "max_tokens": 0}])
async def test_log_probabilities_of_prompts_are_bounded(fields: dict[str, Any]) -> None:
    async with open_front() as front:
        param = "prompt_logprobs" if "prompt_logprobs" in fields else "logprobs"
        message = error(await front.complete(prompt=[[5] * 200] * 300, **fields), 400, "integer_above_max_value", param)
        assert "1260000" in message and "1048576" in message
        assert (await front.complete(prompt=[[5] * 200] * 2, **fields)).status_code == 200


async def test_an_endless_chat_template_keeps_nobody_else_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_prompt, "MAX_SECONDS", 0.5)
    bomb = "{% if messages[0].content == 'bomb' %}{% for a in range(99999) %}{% for b in range(99999) %}"
    async with open_front() as front:
        use_template(front, bomb + "{% endfor %}{% endfor %}{% endif %}{{ messages[0].content }}")
        attacks = [asyncio.create_task(front.chat(messages=[{"role": "user", "content": "bomb"}])) for _ in range(2)]
        await asyncio.sleep(0)
        assert (await front.complete(prompt="hi")).status_code == 200
        assert not any(attack.done() for attack in attacks)
        for attack in attacks:
            assert "seconds" in error(await attack, 400, "invalid_value", "messages")


@pytest.mark.parametrize("chat", [True, False])
async def test_an_answer_has_so_many_log_probabilities_and_no_more(monkeypatch: pytest.MonkeyPatch, chat: bool) -> None:
    async with open_front() as front:
        wish: dict[str, Any] = {"logprobs": True, "top_logprobs": 2} if chat else {"logprobs": 2, "prompt": "hi"}
        send = front.chat if chat else front.complete
        assert (await send(**wish)).status_code == 200
        monkeypatch.setattr(logprobs, "MAX_LOGPROBS", 3)
        assert "3 log" in error(await send(**wish), 400, "too_many_logprobs", "logprobs")
        assert len(events(await send(**wish, stream=True))) > 2
