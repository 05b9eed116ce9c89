"""Asks the server how many tokens our words cost: the tokenizer is the server's, and so is the chat template."""

from dataclasses import replace

import orjson

from .client import Client
from .prompts import WORDS, WordCost
from .settings import BenchSettings, EndpointName
from .workload import PlannedRequest, embeddings_body, generation_body

_FEWEST_TOKENS: dict[EndpointName, int] = {"responses": 16}  # OpenAI's least max_output_tokens; elsewhere it is 1


class CalibrationError(Exception):
    """The server did not answer a small request, so that a load test of it makes no sense."""


async def calibrate(settings: BenchSettings) -> tuple[dict[EndpointName, WordCost], list[str]]:
    """The cost of a word on each endpoint in use, from two requests each: one word, and every word once.

    Returns:
        The costs, and a warning for each endpoint whose answers have no usage object (a word counts as one token
        there).

    Raises:
        CalibrationError: with the server's own words.
    """
    costs: dict[EndpointName, WordCost] = {}
    warnings: list[str] = []
    async with Client(settings) as client:
        for endpoint in dict.fromkeys(settings.endpoints):
            short = await _count_tokens(client, settings, endpoint, 1)
            long = await _count_tokens(client, settings, endpoint, len(WORDS))
            if long <= short:
                warnings.append(f"{endpoint} reports no prompt tokens: taking one token per word")
                costs[endpoint] = WordCost(1.0, 0.0)
                continue
            tokens_per_word = (long - short) / (len(WORDS) - 1)
            costs[endpoint] = WordCost(tokens_per_word, short - tokens_per_word)
    return costs, warnings


async def _count_tokens(client: Client, settings: BenchSettings, endpoint: EndpointName, num_words: int) -> int:
    text = " ".join(WORDS[:num_words])
    plain = replace(settings, stream=False, ignore_eos=False)
    if endpoint == "embeddings":
        body = embeddings_body(settings.model_of(endpoint), [text])
    else:
        body = generation_body(plain, endpoint, text, _FEWEST_TOKENS.get(endpoint, 1))
    num_texts = 1 if endpoint == "embeddings" else 0
    record = await client.send(PlannedRequest(endpoint, orjson.dumps(body), False, num_texts, 1))
    if record.error is not None:
        raise CalibrationError(f"{settings.url} does not serve {endpoint}: {record.error}: {record.message}")
    return record.prompt_tokens
