"""What is sent and when: the i-th request and the i-th arrival, each a pure function of the seed and i."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from .prompts import WordCost, random_text
from .settings import BenchSettings, EndpointName

Phase = Literal["warmup", "measured"]

PATHS: dict[EndpointName, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
}


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request, ready to send."""

    endpoint: EndpointName
    body: bytes
    streams: bool
    num_texts: int
    """Texts to embed; 0 for generation."""
    output_len: int
    """Tokens asked for; 0 for embeddings."""


class Workload:
    """Builds the requests of one run."""

    def __init__(self, settings: BenchSettings, costs: dict[EndpointName, WordCost]) -> None:
        self._settings = settings
        self._costs = costs

    def request(self, index: int, phase: Phase = "measured") -> PlannedRequest:
        """The `index`-th request of a phase. Warm-up has texts of its own, so that it fills no prefix cache."""
        settings = self._settings
        rng = random.Random(f"{settings.seed}/{phase}/{index}")
        endpoint = rng.choice(settings.endpoints)
        texts = [self._text(rng, endpoint) for _ in range(settings.batch_size if endpoint == "embeddings" else 1)]
        if endpoint == "embeddings":
            body = embeddings_body(settings.model_of(endpoint), texts)
            return PlannedRequest(endpoint, orjson.dumps(body), False, len(texts), 0)
        output_len = settings.output_len.sample(rng)
        body = generation_body(settings, endpoint, texts[0], output_len)
        return PlannedRequest(endpoint, orjson.dumps(body), settings.stream, 0, output_len)

    def _text(self, rng: random.Random, endpoint: EndpointName) -> str:
        settings, cost = self._settings, self._costs[endpoint]
        own = random_text(rng, cost.num_words(settings.input_len.sample(rng)))
        if not settings.shared_prefix_len:
            return own
        prefix_rng = random.Random(f"{settings.seed}/prefix/{rng.randrange(settings.num_prefixes)}")
        return f"{random_text(prefix_rng, cost.num_words(settings.shared_prefix_len))} {own}"

    def arrivals(self) -> Iterator[float]:
        """Seconds from the start at which the requests of an open loop are sent, in order, without end.

        Gaps are gamma-distributed with mean 1 / request_rate and shape `burstiness`; with shape 1 they are
        exponential and the arrivals a Poisson process. Every process draws the whole sequence and sends its share.
        """
        settings = self._settings
        rng = random.Random(f"{settings.seed}/arrivals")
        scale = 1 / (settings.request_rate * settings.burstiness)
        now = 0.0
        while True:
            yield now
            now += rng.gammavariate(settings.burstiness, scale)


def embeddings_body(model: str, texts: list[str]) -> dict[str, Any]:
    """Body of an embeddings request. base64 is what OpenAI's own clients ask for, and the cheaper one to parse."""
    return {"model": model, "input": texts, "encoding_format": "base64"}


def generation_body(settings: BenchSettings, endpoint: EndpointName, text: str, output_len: int) -> dict[str, Any]:
    """Body of a chat, completions or responses request for `output_len` tokens."""
    body: dict[str, Any] = {
        "model": settings.model,
        "temperature": settings.temperature,
        "stream": settings.stream,
    }
    if endpoint == "responses":
        body |= {"input": text, "max_output_tokens": output_len, "store": False}
    else:
        body["max_tokens"] = output_len
        body |= {"prompt": text} if endpoint == "completions" else {"messages": [{"role": "user", "content": text}]}
        if settings.stream:
            body["stream_options"] = {"include_usage": True}
    if settings.ignore_eos:
        body |= {"ignore_eos": True, "min_tokens": output_len}
    return body
