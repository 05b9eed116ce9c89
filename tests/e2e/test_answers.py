"""The endpoints through a real server, the real client and the real starter models."""

import json

import httpx2
import numpy as np
import pytest
from openai import OpenAI
from sentence_transformers import SentenceTransformer
from server_process import ServerProcess
from starter_models import minilm_folder

CHAT, EMBEDDING = "smollm2-135m-instruct", "all-minilm-l6-v2"
QUESTION = [{"role": "user", "content": "Name the capital of France."}]


def test_the_models_are_listed(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {CHAT, EMBEDDING}
    assert client.models.retrieve(CHAT).object == "model"


def test_a_chat_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=CHAT, messages=QUESTION, temperature=0, max_tokens=30)  # type: ignore[arg-type]
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens is not None


def test_a_stream_is_the_same_answer(client: OpenAI) -> None:
    arguments = {"model": CHAT, "messages": QUESTION, "temperature": 0, "max_tokens": 30}
    whole = client.chat.completions.create(**arguments)  # type: ignore[call-overload]
    stream = client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_a_second_turn_comes_from_the_prefix_cache(client: OpenAI) -> None:
    turn = [{"role": "system", "content": "You answer in one short sentence. " * 6}, *QUESTION]
    client.chat.completions.create(model=CHAT, messages=turn, max_tokens=2)  # type: ignore[arg-type]
    again = client.chat.completions.create(model=CHAT, messages=turn, max_tokens=2)  # type: ignore[arg-type]
    assert again.usage is not None and again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens > 32  # type: ignore[operator]


def test_completions_with_everything(client: OpenAI) -> None:
    answer = client.completions.create(
        model=CHAT, prompt=["One, two, three,", "The sky is"], n=2, max_tokens=6, seed=5, logprobs=2, temperature=0.8
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    again = client.completions.create(
        model=CHAT, prompt=["One, two, three,", "The sky is"], n=2, max_tokens=6, seed=5, logprobs=2, temperature=0.8
    )
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]


def test_a_stop_string_never_leaks(client: OpenAI) -> None:
    arguments = {"model": CHAT, "prompt": "1, 2, 3, 4, 5,", "temperature": 0, "max_tokens": 40}
    free = client.completions.create(**arguments).choices[0].text  # type: ignore[call-overload]
    stop = free[7:12]
    stopped = client.completions.create(**arguments, stop=[stop]).choices[0]  # type: ignore[call-overload]
    assert stopped.finish_reason == "stop"
    assert stopped.text == free[: free.index(stop)]


def test_embeddings_equal_the_library(client: OpenAI) -> None:
    texts = ["a penstock", "The river turns the wheel. " * 20, "né à Zürich", "x"]
    expected = SentenceTransformer(str(minilm_folder()), device="cpu").encode(texts)
    # Without a format the client asks for base64, which it decodes only after its own strict check of the answer.
    with OpenAI(base_url=client.base_url, api_key="none", max_retries=0) as lenient:
        packed = lenient.embeddings.create(model=EMBEDDING, input=texts)
    numbers = client.embeddings.create(model=EMBEDDING, input=texts, encoding_format="float")
    for answer in (packed, numbers):
        np.testing.assert_allclose([item.embedding for item in answer.data], expected, atol=1e-5)
    short = client.embeddings.create(model=EMBEDDING, input=texts, dimensions=64, encoding_format="float")
    cut = expected[:, :64] / np.linalg.norm(expected[:, :64], axis=1, keepdims=True)
    np.testing.assert_allclose([item.embedding for item in short.data], cut, atol=1e-5)


BAD = [
    ("chat/completions", b"{", "invalid_json", None),
    ("chat/completions", {"model": "nope", "messages": QUESTION}, "model_not_found", "model"),
    ("chat/completions", {"model": CHAT}, None, "messages"),
    ("chat/completions", {"model": CHAT, "messages": "hi"}, None, "messages"),
    ("chat/completions", {"model": CHAT, "messages": QUESTION, "max_tokens": 0}, None, "max_tokens"),
    ("chat/completions", {"model": CHAT, "messages": QUESTION, "max_tokens": -5}, None, "max_tokens"),
    ("chat/completions", {"model": CHAT, "messages": QUESTION, "temperature": 3}, None, "temperature"),
    ("chat/completions", {"model": EMBEDDING, "messages": QUESTION}, None, "model"),
    ("chat/completions", {"model": CHAT, "messages": QUESTION, "no_such_thing": 1}, None, "no_such_thing"),
    ("completions", {"model": CHAT, "prompt": "word " * 100_000}, "context_length_exceeded", None),
    ("completions", {"model": CHAT, "prompt": [10**9]}, None, None),
    ("embeddings", {"model": EMBEDDING, "input": ""}, None, "input"),
    ("embeddings", {"model": EMBEDDING, "input": []}, None, "input"),
    ("embeddings", {"model": CHAT, "input": "x"}, None, "model"),
]


@pytest.mark.parametrize(("path", "body", "code", "param"), BAD)
def test_bad_input_is_a_clear_400_and_the_server_goes_on(
    server: ServerProcess, path: str, body: object, code: str | None, param: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx2.post(f"{server.base_url}/v1/{path}", content=content, timeout=60)
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    error = answer.json()["error"]
    assert error["message"]
    assert error["code"]
    if code:
        assert error["code"] == code
    if param:
        assert error["param"] == param
    after = httpx2.post(f"{server.base_url}/v1/completions", json={"model": CHAT, "prompt": "Hi", "max_tokens": 1})
    assert after.status_code == 200


def test_too_many_max_tokens_are_clamped(client: OpenAI) -> None:
    answer = client.completions.create(model=CHAT, prompt="Say", max_tokens=32000, stop=[" "])
    assert answer.choices[0].finish_reason == "stop"
