"""The gate: who a request is, by the key that it presents, and what of that reaches the engine."""

import pytest
from fake_engine import CHAT, EMBED, open_front
from starlette.datastructures import Headers

from penstock.serving.keys.gate import anybody
from penstock.serving.principal import EVERYBODY, Principal


@pytest.mark.parametrize("headers", [{}, {"authorization": ""}, {"authorization": "Bearer "}, {"x-api-key": " "}])
def test_who_sends_no_key_is_everybody(headers: dict[str, str]) -> None:
    assert anybody(Headers(headers)) == EVERYBODY


def test_one_key_is_one_principal_in_whichever_header() -> None:
    by_bearer = anybody(Headers({"authorization": "Bearer abc"}))
    assert by_bearer == anybody(Headers({"authorization": "bearer  abc "})) == anybody(Headers({"x-api-key": "abc"}))
    assert by_bearer.id not in ("", anybody(Headers({"x-api-key": "abd"})).id)
    assert "abc" not in repr(by_bearer)


MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": CHAT, "messages": MESSAGES}),
        ("/v1/completions", {"model": CHAT, "prompt": "hi"}),
        ("/v1/responses", {"model": CHAT, "input": "hi"}),
        ("/v1/messages", {"model": CHAT, "messages": MESSAGES, "max_tokens": 5}),
        ("/api/v1/chat", {"model": CHAT, "input": "hi"}),
        ("/api/v0/chat/completions", {"model": CHAT, "messages": MESSAGES}),
        ("/api/v0/completions", {"model": CHAT, "prompt": "hi"}),
        ("/v1/embeddings", {"model": EMBED, "input": "hi"}),
        ("/v1/rerank", {"model": EMBED, "query": "hi", "documents": ["a"]}),
        ("/v1/score", {"model": EMBED, "text_1": "hi", "text_2": "a"}),
    ],
)
async def test_every_job_carries_who_asked_and_its_weight(path: str, body: dict[str, object]) -> None:
    async with open_front(identify=lambda headers: Principal("p-1", weight=2.5)) as front:
        answer = await front.post(path, body)
        assert answer.status_code == 200, answer.text
        assert {(job.principal, job.weight) for job in front.engine.jobs} == {("p-1", 2.5)}
