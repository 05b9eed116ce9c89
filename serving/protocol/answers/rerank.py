"""The answers of /v1/rerank and /v1/score."""

from typing import Literal

from .common import Answer


class PairUsage(Answer):
    """Tokens of pairs."""

    prompt_tokens: int
    completion_tokens: Literal[0]
    total_tokens: int


class RankedText(Answer):
    """A document."""

    text: str


class RankedDocument(Answer):
    """One document's place."""

    index: int
    """Among the documents of the request."""
    relevance_score: float
    document: RankedText = RankedText(text="")


class Ranking(Answer):
    """Documents, best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: PairUsage


class Score(Answer):
    """How well one pair fits together."""

    index: int
    object: Literal["score"]
    score: float


class Scores(Answer):
    """Scores in the order of the pairs."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: PairUsage
