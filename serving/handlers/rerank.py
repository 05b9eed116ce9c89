"""Reranking and scoring: bodies to pairs of texts, and the scores to Cohere's and vLLM's answers."""

import time
import uuid
from dataclasses import dataclass

import numpy as np

from ..principal import Principal
from ..protocol.rerank import RerankBody, ScoreBody
from .pair_scores import Pairs, score_pairs
from .services import Services


@dataclass(frozen=True, slots=True)
class RerankHandler:
    """POST /v1/rerank and POST /v1/score, behind validated bodies; both raise what `score_pairs` does."""

    services: Services

    async def rerank(self, body: RerankBody, principal: Principal) -> dict[str, object]:
        """The documents, best first."""
        pairs = Pairs(
            [body.query], body.documents, ["query"], _params("documents", body.documents), body.max_tokens_per_doc
        )
        scores = await score_pairs(self.services, body, pairs, principal)
        best = np.argsort(-scores.values, kind="stable")[: body.top_n]
        return {
            "id": f"rerank-{uuid.uuid4().hex}",
            "model": scores.model,
            "results": [
                {"index": int(index), "relevance_score": float(scores.values[index])}
                | ({"document": {"text": body.documents[index]}} if body.return_documents else {})
                for index in best
            ],
            "usage": scores.usage(),
        }

    async def score(self, body: ScoreBody, principal: Principal) -> dict[str, object]:
        """A score for each pair, in their order."""
        pairs = Pairs(body.text_1, body.text_2, _params("text_1", body.text_1), _params("text_2", body.text_2))
        scores = await score_pairs(self.services, body, pairs, principal)
        return {
            "id": f"score-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": scores.model,
            "data": [
                {"index": index, "object": "score", "score": float(value)} for index, value in enumerate(scores.values)
            ],
            "usage": scores.usage(),
        }


def _params(name: str, texts: list[str]) -> list[str]:
    return [name] if len(texts) == 1 else [f"{name}.{number}" for number in range(len(texts))]
