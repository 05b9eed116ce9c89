"""A cross-encoder on a real server: the same scores over HTTP as from sentence-transformers."""

from pathlib import Path

import httpx2
import pytest
import torch
from sentence_transformers import CrossEncoder
from server_process import ServerProcess
from tiny_encoders import SIZES, write_tokenizer
from transformers import BertConfig, BertForSequenceClassification

QUERY = "water pipe press"
DOCUMENTS = ["turbine water pipe", "queue client", "batch of token text", "pipe press water water"]


def test_documents_are_scored_and_ordered_as_by_the_library(tmp_path: Path) -> None:
    folder = tmp_path / "ranker"
    write_tokenizer(folder, token_types=True)
    torch.manual_seed(1)
    model = BertForSequenceClassification(BertConfig(vocab_size=16, max_position_embeddings=64, num_labels=1, **SIZES))
    for parameter in model.parameters():  # larger than the library draws them: the scores must differ
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(folder)
    expected = CrossEncoder(str(folder), device="cpu").predict([(QUERY, text) for text in DOCUMENTS])
    assert max(expected) - min(expected) > 0.01

    with ServerProcess([str(folder)], home=tmp_path, arguments=["--num-threads", "1"]) as server:
        (listed,) = httpx2.get(f"{server.base_url}/v1/models").json()["data"]
        assert (listed["id"], listed["state"]) == ("ranker", "loaded")

        body = {"model": "ranker", "text_1": QUERY, "text_2": DOCUMENTS}
        scores = [entry["score"] for entry in httpx2.post(f"{server.base_url}/v1/score", json=body).json()["data"]]
        assert scores == pytest.approx(list(expected), abs=1e-5)

        body = {"model": "ranker", "query": QUERY, "documents": DOCUMENTS, "top_n": 2}
        best = httpx2.post(f"{server.base_url}/v1/rerank", json=body).json()["results"]
        order = sorted(range(4), key=lambda index: -expected[index])
        assert [entry["index"] for entry in best] == order[:2]
        assert best[0]["relevance_score"] == pytest.approx(max(expected), abs=1e-5)

        refusal = httpx2.post(f"{server.base_url}/v1/embeddings", json={"model": "ranker", "input": QUERY})
        assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, "model")
