"""The requests that `soak.py` sends: every protocol, right and wrong ones, each checked against a first answer.

A scenario is a coroutine function that gets a `Caller`. What it raises says how it went: nothing, `WrongAnswerError`,
or the client library's error, which may be a refusal or a failure.
"""

import asyncio
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from openai import AsyncOpenAI
from soak_server import EMBEDDING_MODEL, JIT_MODEL, Watched

PROMPTS = [f"Tell me what comes after the number {number}." for number in range(6)]
TEXTS = [f"Water under pressure turns turbine number {number}." for number in range(12)]
TIMEOUT = 120.0
"""Seconds after which a request counts as hung."""
_MAX_TOKENS = 24
_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}}, "required": ["n"]}
_TOOL = {"name": "look", "description": "Look at a thing.", "parameters": {**_SCHEMA, "additionalProperties": False}}


class WrongAnswerError(Exception):
    """The server answered, but not what it should have."""


class RefusedError(Exception):
    """A status that is no success, from a request that was sent without the OpenAI client."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response.text[:300])
        self.response = response


@dataclass(slots=True)
class Tally:
    """What became of all requests."""

    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """By status and code: refusals that say when to come again."""
    expected: Counter[str] = field(default_factory=Counter)
    """By status: bad requests that were turned down, as they should be."""
    failed: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    """Connections lost with an API process that was killed on purpose."""
    examples: dict[str, str] = field(default_factory=dict)
    """One message for each kind of failure."""
    first_tokens: list[tuple[float, float]] = field(default_factory=list)
    """When a stream began, and how long its first token took; seconds."""
    gaps: list[tuple[float, float, float]] = field(default_factory=list)
    """Of each stream: its begin, its end, and the longest time between two of its events."""


class Caller:
    """One key's clients, and the answers that everybody must get."""

    def __init__(self, watched: Watched, name: str, model: str, references: dict[str, Any], tally: Tally) -> None:
        self.watched = watched
        self.model = model
        self.tally = tally
        self._references = references
        base_url, key = watched.process.base_url, watched.keys[name]
        limits = httpx.Limits(max_connections=None)
        self.raw = httpx.AsyncClient(
            base_url=base_url, headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT, limits=limits
        )
        self.openai = AsyncOpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0, timeout=TIMEOUT)

    async def close(self) -> None:
        """Give the connections back."""
        await self.raw.aclose()
        await self.openai.close()

    def check(self, key: str, answer: Any) -> None:
        """Compare with the first answer under that key."""
        first = self._references.setdefault(key, answer)
        if first != answer:
            raise WrongAnswerError(f"{key}: first {first!r}, now {answer!r}")

    async def post(self, path: str, body: Any, **options: Any) -> Any:
        """One JSON answer.

        Raises:
            RefusedError: another status than 200.
        """
        response = await self.raw.post(path, json=body, **options)
        if response.status_code != 200:
            raise RefusedError(response)
        return response.json()

    async def timed(self, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The stream's events, whose times are kept."""
        begin = last = self.watched.now
        longest = 0.0
        is_first = True
        async for event in stream:
            now = self.watched.now
            if is_first:
                self.tally.first_tokens.append((begin, now - begin))
                is_first = False
            else:
                longest = max(longest, now - last)
            last = now
            yield event
        self.tally.gaps.append((begin, last, longest))


Scenario = Callable[[Caller, random.Random], Awaitable[None]]


def _chat(index: int) -> dict[str, Any]:
    """Greedy ones and sampled ones, which a seed makes repeatable."""
    sampling = {"temperature": 0} if index % 2 == 0 else {"temperature": 0.8, "seed": index}
    return {"messages": [{"role": "user", "content": PROMPTS[index]}], "max_tokens": _MAX_TOKENS, **sampling}


def _usage(usage: Any) -> tuple[int, int]:
    return usage.prompt_tokens, usage.completion_tokens


async def chat(caller: Caller, rng: random.Random) -> None:
    """One answer."""
    index = rng.randrange(len(PROMPTS))
    answer = await caller.openai.chat.completions.create(model=caller.model, **_chat(index))
    choice = answer.choices[0]
    caller.check(f"chat {index}", (choice.message.content, choice.finish_reason, _usage(answer.usage)))


async def chat_stream(caller: Caller, rng: random.Random) -> None:
    """The same answers in pieces."""
    index = rng.randrange(len(PROMPTS))
    stream = await caller.openai.chat.completions.create(
        model=caller.model, stream=True, stream_options={"include_usage": True}, **_chat(index)
    )
    text, ends, usage = "", [], None
    async for chunk in caller.timed(stream):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            ends += [choice.finish_reason] if choice.finish_reason else []
        usage = chunk.usage or usage
    if len(ends) != 1 or usage is None:
        raise WrongAnswerError(f"a stream with {len(ends)} ends and usage {usage}")
    caller.check(f"chat {index}", (text, ends[0], _usage(usage)))


async def completion(caller: Caller, rng: random.Random) -> None:
    """Two choices and the prompt before them."""
    index = rng.randrange(len(PROMPTS))
    answer = await caller.openai.completions.create(
        model=caller.model, prompt=PROMPTS[index], max_tokens=12, n=2, echo=True, temperature=0
    )
    texts = [choice.text for choice in answer.choices]
    if len(texts) != 2 or texts[0] != texts[1] or not texts[0].startswith(PROMPTS[index]):
        raise WrongAnswerError(f"two greedy choices with echo: {texts}")
    caller.check(f"completion {index}", texts[0])


async def response(caller: Caller, rng: random.Random) -> None:
    """A stored response, in the background half of the time, and one that goes on from it."""
    index = rng.randrange(len(PROMPTS))
    arguments: dict[str, Any] = {"model": caller.model, "max_output_tokens": _MAX_TOKENS, "temperature": 0}
    first = await caller.openai.responses.create(input=PROMPTS[index], background=rng.random() < 0.5, **arguments)
    while first.status in ("queued", "in_progress"):
        await asyncio.sleep(0.2)
        first = await caller.openai.responses.retrieve(first.id)
    caller.check(f"response {index}", (first.output_text, first.status))
    second = await caller.openai.responses.create(input="Go on.", previous_response_id=first.id, **arguments)
    caller.check(f"second response {index}", second.output_text)
    await caller.openai.responses.delete(first.id)


async def response_stream(caller: Caller, rng: random.Random) -> None:
    """The first of these responses in pieces."""
    index = rng.randrange(len(PROMPTS))
    stream = await caller.openai.responses.create(
        model=caller.model, input=PROMPTS[index], max_output_tokens=_MAX_TOKENS, temperature=0, stream=True
    )
    text, numbers, final = "", [], None
    async for event in caller.timed(stream):
        numbers.append(event.sequence_number)
        if event.type == "response.output_text.delta":
            text += event.delta
        elif event.type in ("response.completed", "response.incomplete"):
            final = event.response
        elif event.type in ("response.failed", "error"):
            raise WrongAnswerError(f"the stream ended with {event.to_json()[:300]}")
    if numbers != list(range(len(numbers))) or final is None or final.output_text != text:
        raise WrongAnswerError(f"events {numbers[:3]}...{numbers[-3:]}, end {final and final.status}")
    caller.check(f"response {index}", (text, final.status))


async def embeddings(caller: Caller, rng: random.Random) -> None:
    """Some texts; the vectors point where the first ones did."""
    chosen = rng.sample(range(len(TEXTS)), 4)
    answer = await caller.openai.embeddings.create(
        model=EMBEDDING_MODEL, input=[TEXTS[index] for index in chosen], encoding_format="float"
    )
    for index, item in zip(chosen, answer.data, strict=True):
        vector = np.array(item.embedding)
        first = caller._references.setdefault(f"vector {index}", vector)
        cosine = float(vector @ first / np.linalg.norm(vector) / np.linalg.norm(first))
        if not cosine > 0.9999:
            raise WrongAnswerError(f"vector {index} has the cosine {cosine} to the first one")


async def rerank(caller: Caller, rng: random.Random) -> None:
    """The order of documents."""
    body = {"model": EMBEDDING_MODEL, "query": TEXTS[3], "documents": TEXTS[:6]}
    answer = await caller.post("/v1/rerank", body)
    caller.check("rerank", [item["index"] for item in answer["results"]])


async def tools(caller: Caller, rng: random.Random) -> None:
    """A call that the model has to make."""
    answer = await caller.openai.chat.completions.create(
        model=caller.model,
        messages=[{"role": "user", "content": "Look at thing 7."}],
        tools=[{"type": "function", "function": _TOOL}],  # type: ignore[list-item]
        tool_choice="required",
        temperature=0,
        max_tokens=80,
    )
    calls = answer.choices[0].message.tool_calls or []
    if answer.choices[0].finish_reason == "tool_calls":
        for call in calls:
            json.loads(call.function.arguments)  # type: ignore[union-attr]
    caller.check("tools", ([call.to_dict()["function"] for call in calls], answer.choices[0].finish_reason))


async def schema(caller: Caller, rng: random.Random) -> None:
    """An answer that fits a schema."""
    answer = await caller.openai.chat.completions.create(
        model=caller.model,
        messages=[{"role": "user", "content": "A number, please."}],
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": _SCHEMA, "strict": True}},  # type: ignore[misc]
        temperature=0,
        max_tokens=60,
    )
    choice = answer.choices[0]
    if choice.finish_reason == "stop" and "n" not in json.loads(choice.message.content or ""):
        raise WrongAnswerError(f"does not fit the schema: {choice.message.content!r}")
    caller.check("schema", choice.message.content)


async def anthropic(caller: Caller, rng: random.Random) -> None:
    """A message over Anthropic's protocol, streamed half of the time."""
    index = rng.randrange(len(PROMPTS))
    body = {
        "model": caller.model,
        "max_tokens": 16,
        "temperature": 0,
        "messages": [{"role": "user", "content": PROMPTS[index]}],
    }
    if rng.random() < 0.5:
        answer = await caller.post("/v1/messages", body)
        caller.check(f"message {index}", ("".join(part["text"] for part in answer["content"]), answer["stop_reason"]))
        return
    text, reason, kinds = "", None, []
    async with caller.raw.stream("POST", "/v1/messages", json=body | {"stream": True}) as response_:
        if response_.status_code != 200:
            await response_.aread()
            raise RefusedError(response_)
        async for line in response_.aiter_lines():
            if line.startswith("data:"):
                event = json.loads(line[5:])
                if event["type"] == "ping":  # also before the first one, while a worker is restarted
                    continue
                kinds.append(event["type"])
                if event["type"] == "content_block_delta":
                    text += event["delta"]["text"]
                elif event["type"] == "message_delta":
                    reason = event["delta"]["stop_reason"]
                elif event["type"] == "error":
                    raise WrongAnswerError(f"the stream ended with {event}")
    if kinds[0] != "message_start" or kinds[-1] != "message_stop":
        raise WrongAnswerError(f"a stream from {kinds[0]} to {kinds[-1]}")
    caller.check(f"message {index}", (text, reason))


async def disconnect(caller: Caller, rng: random.Random) -> None:
    """A client that goes away in the middle."""
    stream = await caller.openai.chat.completions.create(
        model=caller.model, messages=[{"role": "user", "content": "Count."}], max_tokens=200, stream=True
    )
    number = 0
    async for _ in stream:
        number += 1
        if number > rng.randrange(1, 8):
            break
    await stream.close()


async def long_prompt(caller: Caller, rng: random.Random) -> None:
    """One that takes many steps; half of them have a beginning that the prefix cache may know."""
    words = " ".join(TEXTS) if rng.random() < 0.5 else " ".join(str(rng.random())[2:5] for _ in range(40))
    answer = await caller.openai.completions.create(
        model=caller.model, prompt=(words * 4)[:330], max_tokens=2, temperature=0
    )
    if answer.usage is None or answer.usage.completion_tokens > 2:
        raise WrongAnswerError(f"usage {answer.usage}")


async def guest(caller: Caller, rng: random.Random) -> None:
    """A model that is loaded by its request, and goes when it was idle for a while."""
    answer = await caller.openai.completions.create(model=JIT_MODEL, prompt=PROMPTS[0], max_tokens=6, temperature=0)
    caller.check("guest", answer.choices[0].text)


_BAD: list[tuple[str, Any]] = [
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/chat/completions", {"model": "no-such-model", "messages": [{"role": "user", "content": "x"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "temperature": -1}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 10**9}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "logit_bias": {"x": 1}}),
    ("/v1/completions", {"prompt": "x " * 20000}),
    ("/v1/completions", {"prompt": [10**9]}),
    ("/v1/embeddings", {"model": EMBEDDING_MODEL, "input": []}),
    ("/v1/responses", {"input": "x", "previous_response_id": "resp_none"}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "x"}]}),
    ("/v1/nowhere", {}),
]


async def bad_input(caller: Caller, rng: random.Random) -> None:
    """Something that must be turned down with a 4xx."""
    path, body = rng.choice(_BAD)
    content = json.dumps({"model": caller.model, **body})
    if rng.random() < 0.2:
        content = rng.choice([content[:-1], '{"model": ' + "[" * 5000, '{"temperature": NaN}', "\udcff", ""])
    response_ = await caller.raw.post(
        path, content=content.encode(errors="surrogateescape"), headers={"Content-Type": "application/json"}
    )
    if response_.status_code in (429, 503):
        raise RefusedError(response_)
    if not 400 <= response_.status_code < 500 or "error" not in response_.json():
        raise WrongAnswerError(f"{path} {content[:100]!r}: {response_.status_code} {response_.text[:200]}")
    caller.tally.expected[str(response_.status_code)] += 1


SCENARIOS: dict[Scenario, int] = {
    chat: 10,
    chat_stream: 20,
    completion: 6,
    response: 5,
    response_stream: 6,
    embeddings: 12,
    rerank: 3,
    tools: 3,
    schema: 4,
    anthropic: 6,
    disconnect: 5,
    long_prompt: 4,
    guest: 1,
    bad_input: 8,
}
"""How often each comes, in proportion."""


async def record_references(caller: Caller) -> None:
    """Ask each question that has an answer once, alone."""
    for scenario in (chat, completion, response, embeddings, rerank, tools, schema, anthropic, guest):
        for index in range(len(PROMPTS) if scenario not in (rerank, tools, schema, guest) else 1):
            await scenario(caller, _Chosen(index))


class _Chosen(random.Random):
    """Chooses what it is told to."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._index = index

    def randrange(self, *arguments: Any) -> int:
        """The chosen one."""
        return self._index

    def random(self) -> float:
        """Nothing in the background, no stream."""
        return 1.0

    def sample(self, population: Any, k: int, **options: Any) -> list[Any]:
        """A window that moves over all."""
        return [population[(2 * self._index + offset) % len(population)] for offset in range(k)]


def quantile(values: list[float], share: float) -> float:
    """The value that this share of all does not exceed; NaN: there are none."""
    return sorted(values)[min(len(values) - 1, math.floor(share * len(values)))] if values else math.nan


def by_minute(times: list[tuple[float, float]], seconds: float = 30.0) -> dict[float, list[float]]:
    """Values by the beginning of the period in which they were taken."""
    periods: dict[float, list[float]] = defaultdict(list)
    for at, value in times:
        periods[seconds * (at // seconds)].append(value)
    return dict(sorted(periods.items()))
