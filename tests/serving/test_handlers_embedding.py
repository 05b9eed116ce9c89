"""POST /v1/embeddings: inputs in every form, both encodings, shortening, limits."""

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_engine import DIM, EMBED, error, fake_vector, open_front

from penstock.scheduler.messages import Embed
from penstock.serving.handlers.embedding import shorten
from penstock.serving.text.served_model import EmbeddingInputRules


def inputs_of(job: object) -> list[list[int]]:
    assert isinstance(job, Embed)
    return job.inputs


async def test_answer_has_openais_shape_and_counts_special_tokens() -> None:
    async with open_front() as front:
        body = (await front.embed(input=["hello", "the fox says hello"])).json()
        inputs = inputs_of(front.engine.jobs[0])
        assert body["object"] == "list" and body["model"] == EMBED
        assert [entry["index"] for entry in body["data"]] == [0, 1]
        assert {entry["object"] for entry in body["data"]} == {"embedding"}
        assert inputs[0][0] == inputs[0][-1] == inputs[1][-1] and len(inputs[1]) > 4
        assert body["usage"] == {"prompt_tokens": sum(map(len, inputs)), "total_tokens": sum(map(len, inputs))}
        np.testing.assert_allclose(body["data"][1]["embedding"], fake_vector(inputs[1]), rtol=1e-7)


@pytest.mark.parametrize("value", [[5, 6, 7], [[5, 6], [7]], ["hello", [5]]])
async def test_token_ids_are_taken_as_they_are(value: Any) -> None:
    async with open_front() as front:
        assert (await front.embed(input=value)).status_code == 200
        given = [value] if isinstance(value[0], int) else value
        for item, ids in zip(given, inputs_of(front.engine.jobs[0]), strict=True):
            assert isinstance(item, str) or ids == item


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
async def test_both_encodings_give_the_same_vector(encoding: str | None) -> None:
    async with open_front() as front:
        (entry,) = (await front.embed(encoding_format=encoding)).json()["data"]
        vector = entry["embedding"]
        if encoding == "base64":
            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        assert len(vector) == DIM
        assert np.array_equal(np.asarray(vector, "<f4"), fake_vector(inputs_of(front.engine.jobs[0])[0]))


async def test_shortened_vectors_have_length_one() -> None:
    async with open_front() as front:
        (entry,) = (await front.embed(dimensions=3)).json()["data"]
        whole = fake_vector(inputs_of(front.engine.jobs[0])[0])
        np.testing.assert_allclose(entry["embedding"], whole[:3] / np.linalg.norm(whole[:3]), rtol=1e-6)
        error(await front.embed(dimensions=DIM + 1), 400, "integer_above_max_value", "dimensions")
        error(await front.embed(dimensions=0), 400, "integer_below_min_value", "dimensions")


def test_shortening_survives_zeros() -> None:
    assert not shorten(np.zeros((2, 4), np.float32), 2).any()


async def test_too_long_inputs_are_refused_by_index_or_cut() -> None:
    async with open_front() as front:
        long = "fox " * 50
        message = error(await front.embed(input=["a", long]), 400, "context_length_exceeded", "input.1")
        assert "at most 32" in message
        error(await front.embed(input=[5] * 33), 400, "context_length_exceeded", "input")
        for cut, length in [(-1, 32), (10, 10), (1000, 32)]:
            front.engine.jobs.clear()
            assert (await front.embed(input=[long, "a"], truncate_prompt_tokens=cut)).status_code == 200
            inputs = inputs_of(front.engine.jobs[0])
            assert len(inputs[0]) == length and inputs[0][-1] == inputs[1][-1]
        error(await front.embed(truncate_prompt_tokens=0), 400, "integer_below_min_value", "truncate_prompt_tokens")


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        ("", "empty_string", "input"),
        (["a", ""], "empty_string", "input.1"),
        ([], "empty_array", "input"),
        ([[]], "empty_array", "input.0"),
        ([[5], []], "empty_array", "input.1"),
        (None, "missing_required_parameter", "input"),
        (5, "invalid_type", "input"),
        ({"a": 1}, "invalid_type", "input"),
        ([1.5], "invalid_type", "input.0"),
        ([True], "invalid_type", "input.0"),
        ([-1], "invalid_type", "input.0"),
        (["a", None], "invalid_type", "input.1"),
        ([[5, "a"]], "invalid_type", "input.0"),
        ([5, 400], "invalid_value", "input"),
        (["a"] * 2049, "array_above_max_length", "input"),
    ],
)
async def test_unusable_inputs_are_named(value: Any, code: str, param: str) -> None:
    async with open_front() as front:
        error(await front.embed(input=value), 400, code, param)
        assert not front.engine.jobs


async def test_models_that_name_their_sizes_are_cut_to_those_only() -> None:
    async with open_front() as front:
        rules = replace(front.shelf[EMBED].input_rules, dimensions=(2, 4))
        object.__setattr__(front.shelf[EMBED], "input_rules", rules)
        assert "2, 4" in error(await front.embed(dimensions=3), 400, "invalid_value", "dimensions")
        for size in (2, 4, DIM):
            assert len((await front.embed(dimensions=size)).json()["data"][0]["embedding"]) == size


@pytest.mark.parametrize(
    ("fields", "prefix"),
    [
        ({}, "by default: "),
        ({"prompt_name": "query"}, "find "),
        ({"input_type": "search_query"}, "find "),
        ({"task": "retrieval.passage"}, "doc "),
        ({"input_type": "document", "task": "document"}, "doc "),
    ],
)
async def test_named_prompts_are_the_models_own(fields: dict[str, str], prefix: str) -> None:
    async with open_front() as front:
        rules = EmbeddingInputRules(32, prefix="by default: ", prompts={"query": "find ", "passage": "doc "})
        object.__setattr__(front.shelf[EMBED], "input_rules", rules)
        assert (await front.embed(input=["fox"], **fields)).status_code == 200
        expected = front.shelf[EMBED].tokenizer.encode(prefix + "fox", 100, add_special_tokens=True)
        assert inputs_of(front.engine.jobs[0]) == [expected]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_name": "query"}, "prompt_name"),
        ({"task": "classification"}, "task"),
        ({"input_type": "query", "task": "document"}, "input_type"),
        ({"input_type": "query", "input": [5]}, "input_type"),
    ],
)
async def test_prompts_that_cannot_be_put_before_are_named(fields: dict[str, Any], param: str) -> None:
    async with open_front() as front:
        error(await front.embed(**fields), 400, "invalid_value", param)
        error(await front.embed(messages=[]), 400, "unsupported_parameter", "messages")
        assert not front.engine.jobs


async def test_official_client_accepts_the_answer() -> None:
    async with open_front() as front:
        floats = await front.openai.embeddings.create(model=EMBED, input="a", encoding_format="float")
        assert len(floats.data[0].embedding) == DIM
