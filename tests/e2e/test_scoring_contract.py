"""Scores on a real server: log probabilities of a prompt are those it was generated with, and documents are ordered."""

from typing import Any

import pytest
from openai import OpenAI

from penstock.serving.shelf.starter import STARTER_MODELS

CHAT, EMBED = STARTER_MODELS


def complete(client: OpenAI, **fields: Any) -> dict[str, Any]:
    """A choice as plain data: OpenAI's types know no null for the first token of an echo, which OpenAI writes."""
    body = {"model": CHAT, "temperature": 0, "logprobs": 2} | fields
    answer: Any = client.post("/completions", cast_to=object, body=body)
    choice: dict[str, Any] = answer["choices"][0]
    return choice


def test_echoed_log_probabilities_are_those_of_the_generation(client: OpenAI) -> None:
    prompt = "The capital of France is"
    made = complete(client, prompt=prompt, max_tokens=8)
    num_made = len(made["logprobs"]["tokens"])
    for max_tokens in (0, 1):
        scored = complete(client, prompt=prompt + made["text"], max_tokens=max_tokens, echo=True)
        logprobs = {name: values[: -1 if max_tokens else None] for name, values in scored["logprobs"].items()}
        assert logprobs["tokens"][-num_made:] == made["logprobs"]["tokens"]
        assert logprobs["token_logprobs"][-num_made:] == pytest.approx(made["logprobs"]["token_logprobs"], abs=1e-3)
        assert logprobs["token_logprobs"][0] is None and scored["text"].startswith(prompt + made["text"])
        for token, top in list(zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))[-num_made:]:
            assert max(top, key=top.get) == token, "what was chosen greedily is the likeliest"


def test_documents_are_ordered_by_what_they_say(client: OpenAI) -> None:
    documents = ["Bread is baked in an oven.", "Water drives the turbine.", "The cat sleeps."]
    answer = client.post(
        "/rerank",
        cast_to=object,
        body={"model": EMBED, "query": "What turns a hydroelectric generator?", "documents": documents, "top_n": 2},
    )
    assert isinstance(answer, dict)
    assert [result["index"] for result in answer["results"]][0] == 1 and len(answer["results"]) == 2


def test_forms_are_kept_by_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model=CHAT, prompt="A number:", max_tokens=8, temperature=1, extra_body={"regex": "[0-9]{3}"}
    )
    assert answer.choices[0].text.isdigit() and len(answer.choices[0].text) == 3
