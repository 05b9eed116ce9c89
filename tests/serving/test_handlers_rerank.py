"""POST /v1/rerank and /v1/score: by embeddings and by a cross-encoder, in the shapes of Cohere, Jina and vLLM."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_engine import BARE, CHAT, DIM, EMBED, Front, error, fake_vector, model_ready, open_front, step, tiny_tokenizer
from tokenizers import Tokenizer, processors

from penstock.scheduler.messages import Embed, EmbeddingOutput
from penstock.serving.text.served_model import EmbeddingInputRules
from penstock.serving.text.tokenizer import TextTokenizer

DOCUMENTS = ["hello world", "the quick brown fox", "says hello"]


def embed_ids(front: Front, text: str) -> list[int]:
    return front.shelf[EMBED].tokenizer.encode(text, 100, add_special_tokens=True)


def cosine(front: Front, first: str, second: str) -> float:
    return float(fake_vector(embed_ids(front, first)) @ fake_vector(embed_ids(front, second)))


def pair_tokenizer() -> Tokenizer:
    tokenizer = tiny_tokenizer()
    end = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>",
        pair="<|endoftext|> $A <|endoftext|> $B:1 <|endoftext|>:1",
        special_tokens=[end],
    )
    return tokenizer


def use_cross_encoder(front: Front) -> None:
    """Make the bare model one whose score is the number of tokens of the second text, in hundredths."""
    front.put(
        replace(
            front.shelf[BARE],
            kind="score",
            tokenizer=TextTokenizer(pair_tokenizer()),
            input_rules=EmbeddingInputRules(max_tokens=32),
        )
    )
    front.engine.models[BARE] = model_ready(BARE, kind="score", max_model_len=64, num_kv_blocks=0)

    async def embed(job: Embed) -> None:
        starts = zip(job.inputs, job.second_starts, strict=True)
        scores = np.array([(len(ids) - start) / 100 for ids, start in starts], "<f4")
        front.engine._deliver(step(embeddings=[EmbeddingOutput(job.request_id, 1, scores.tobytes())]))

    front.engine._embed = embed  # type: ignore[method-assign]


def job_of(front: Front) -> Embed:
    (job,) = front.engine.jobs
    assert isinstance(job, Embed)
    return job


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_embeddings_rank_by_cosine(path: str) -> None:
    async with open_front() as front:
        body = (await front.post(path, {"model": EMBED, "query": "fox", "documents": DOCUMENTS})).json()
        expected = {index: cosine(front, "fox", document) for index, document in enumerate(DOCUMENTS)}
        order = sorted(expected, key=lambda index: -expected[index])
        assert [result["index"] for result in body["results"]] == order
        for result in body["results"]:
            assert result["relevance_score"] == pytest.approx(expected[result["index"]], abs=1e-6)
            assert result["document"] == {"text": DOCUMENTS[result["index"]]}
        num_tokens = sum(len(embed_ids(front, text)) for text in ["fox", *DOCUMENTS])
        assert body["usage"]["total_tokens"] == num_tokens and body["model"] == EMBED


async def test_best_documents_alone_and_without_their_text() -> None:
    async with open_front() as front:
        asked = {"model": EMBED, "query": "fox", "documents": [{"text": text} for text in DOCUMENTS]}
        whole = (await front.post("/v1/rerank", asked)).json()["results"]
        best = (await front.post("/v1/rerank", asked | {"top_n": 2, "return_documents": False})).json()["results"]
        assert best == [{key: result[key] for key in ("index", "relevance_score")} for result in whole[:2]]


async def test_queries_and_documents_get_the_models_prompts() -> None:
    async with open_front() as front:
        rules = EmbeddingInputRules(32, prompts={"query": "find ", "passage": "doc "})
        front.shelf[EMBED] = replace(front.shelf[EMBED], input_rules=rules)
        await front.post("/v1/rerank", {"model": EMBED, "query": "fox", "documents": ["hello"]})
        assert job_of(front).inputs == [embed_ids(front, "find fox"), embed_ids(front, "doc hello")]


async def test_cross_encoders_read_both_texts_at_once() -> None:
    async with open_front() as front:
        use_cross_encoder(front)
        documents = ["hello", "the quick brown fox", "world"]
        body = (await front.post("/v1/rerank", {"model": BARE, "query": "fox", "documents": documents})).json()
        job = job_of(front)
        pairs = pair_tokenizer().encode_batch([("fox", document) for document in documents])
        assert job.inputs == [pair.ids for pair in pairs]
        assert job.second_starts == [pair.type_ids.index(1) for pair in pairs]
        assert body["results"][0]["index"] == 1, "the longest document"
        lengths = [len(pair.ids) - pair.type_ids.index(1) for pair in pairs]
        assert body["results"][0]["relevance_score"] == pytest.approx(max(lengths) / 100)


async def test_only_second_texts_are_cut() -> None:
    async with open_front() as front:
        use_cross_encoder(front)
        long = "fox " * 40
        asked = {"model": BARE, "query": "hello", "documents": ["fox", long]}
        error(await front.post("/v1/rerank", asked), 400, "context_length_exceeded", "documents.1")
        (query,) = [len(front.engine.encode("hello"))]
        for fields, length in [
            ({"truncate_prompt_tokens": -1}, 32),
            ({"truncate_prompt_tokens": 12}, 12),
            ({"max_tokens_per_doc": 5}, query + 5 + 3),
        ]:
            front.engine.jobs.clear()
            assert (await front.post("/v1/rerank", asked | fields)).status_code == 200
            inputs = job_of(front).inputs
            assert len(inputs[1]) == length and inputs[1][-1] == inputs[0][-1]
        asked |= {"query": long, "truncate_prompt_tokens": -1}
        assert "never cuts" in error(
            await front.post("/v1/rerank", asked), 400, "context_length_exceeded", "documents.0"
        )


async def test_embedded_documents_are_cut_too() -> None:
    async with open_front() as front:
        asked = {"model": EMBED, "query": "fox", "documents": ["fox " * 40]}
        error(await front.post("/v1/rerank", asked), 400, "context_length_exceeded", "documents")
        await front.post("/v1/rerank", asked | {"truncate_prompt_tokens": -1, "max_tokens_per_doc": 9})
        assert len(job_of(front).inputs[1]) == 9


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
@pytest.mark.parametrize(
    ("text_1", "text_2", "pairs"),
    [
        ("fox", "hello", [("fox", "hello")]),
        ("fox", ["hello", "world"], [("fox", "hello"), ("fox", "world")]),
        (["fox", "the"], ["hello", "world"], [("fox", "hello"), ("the", "world")]),
    ],
)
async def test_scores_of_pairs(path: str, text_1: Any, text_2: Any, pairs: list[tuple[str, str]]) -> None:
    async with open_front() as front:
        body = (await front.post(path, {"model": EMBED, "text_1": text_1, "text_2": text_2})).json()
        assert body["object"] == "list"
        assert [entry["index"] for entry in body["data"]] == list(range(len(pairs)))
        scores = [entry["score"] for entry in body["data"]]
        assert scores == pytest.approx([cosine(front, *pair) for pair in pairs], abs=1e-6)


async def test_vectors_of_any_length_are_compared_by_direction() -> None:
    async with open_front() as front:

        async def embed(job: Embed) -> None:
            vectors = np.array([[2.0] + [0.0] * (DIM - 1), [-3.0] + [0.0] * (DIM - 1), [0.0] * DIM], "<f4")
            front.engine._deliver(step(embeddings=[EmbeddingOutput(job.request_id, DIM, vectors.tobytes())]))

        front.engine._embed = embed  # type: ignore[method-assign]
        body = (await front.post("/v1/score", {"model": EMBED, "text_1": "a", "text_2": ["b", "c"]})).json()
        assert [entry["score"] for entry in body["data"]] == [-1.0, 0.0]


@pytest.mark.parametrize(
    ("path", "fields", "code", "param"),
    [
        ("/v1/rerank", {"query": ""}, "empty_string", "query"),
        ("/v1/rerank", {"query": None}, "missing_required_parameter", "query"),
        ("/v1/rerank", {"documents": []}, "empty_array", "documents"),
        ("/v1/rerank", {"documents": "a"}, "invalid_type", "documents"),
        ("/v1/rerank", {"documents": ["a", 5]}, "invalid_type", "documents.1"),
        ("/v1/rerank", {"documents": ["a", ""]}, "empty_string", "documents.1"),
        ("/v1/rerank", {"documents": [{"text": "a", "title": "b"}]}, "unknown_parameter", "documents.0.title"),
        ("/v1/rerank", {"documents": ["a"] * 2049}, "array_above_max_length", "documents"),
        ("/v1/rerank", {"top_n": 0}, "integer_below_min_value", "top_n"),
        ("/v1/rerank", {"rank_fields": ["title"]}, "unsupported_parameter", "rank_fields"),
        ("/v1/rerank", {"truncate_prompt_tokens": 0}, "integer_below_min_value", "truncate_prompt_tokens"),
        ("/v1/rerank", {"model": CHAT}, "model_not_supported", "model"),
        ("/v1/rerank", {"model": "unknown"}, "model_not_found", "model"),
        ("/v1/score", {"text_1": ["a", "b", "c"]}, "invalid_value", "text_1"),
        ("/v1/score", {"text_2": []}, "empty_array", "text_2"),
        ("/v1/score", {"text_2": ["a", ""]}, "empty_string", "text_2.1"),
        ("/v1/score", {"text_1": {"content": []}}, "invalid_type", "text_1"),
    ],
)
async def test_faults_name_code_and_param(path: str, fields: dict[str, Any], code: str, param: str) -> None:
    base = {"query": "a", "documents": ["b"]} if path.endswith("rerank") else {"text_1": "a", "text_2": ["b", "c"]}
    async with open_front() as front:
        status = 404 if code == "model_not_found" else 400
        error(await front.post(path, {"model": EMBED} | base | fields), status, code, param)
        assert not front.engine.jobs


async def test_each_kind_of_model_says_where_it_belongs() -> None:
    async with open_front() as front:
        use_cross_encoder(front)
        message = error(await front.embed(model=BARE), 400, "model_not_supported", "model")
        assert "/v1/rerank" in message and EMBED in message
