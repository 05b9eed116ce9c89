"""Legacy completions: several prompts, each with several choices, in one answer or one stream."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

import orjson

from penstock.scheduler.messages import ModelReady, Submit
from penstock.scheduler.sampling_params import SamplingParams

from ..errors import ApiError
from ..protocol.completion import CompletionBody
from ..text.served_model import ServedModel
from ..text.tokenizer import off_loop
from .choice import Choice, Delta, TokenEntry
from .frames import ChunkFrames
from .generation import Generation, run
from .logprobs import completion_logprobs
from .sampling import check_token_ids, choice_seed, resolve_sampling, token_limit, token_room
from .services import Services

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""


@dataclass(frozen=True, slots=True)
class CompletionHandler:
    """POST /v1/completions, behind a validated body."""

    services: Services

    async def prepare(self, body: CompletionBody) -> Generation:
        """Check a request against its model and tokenise its prompts.

        Raises:
            ApiError: the request cannot be served as it is.
            EngineDeadError: the worker is gone.
        """
        started = time.monotonic()
        served, ready = await self.services.find(body.model, "generate")
        prompts = await _tokenise(body, served, ready)
        request_id = f"cmpl-{uuid.uuid4().hex}"
        now = time.time()
        seed = body.seed
        choices = []
        for number, prompt in enumerate(prompts):
            sampling = _sampling(body, served, ready, prompt, _param(body, number))
            seed = sampling.seed if seed is None else seed  # one seed for the request, drawn or given
            for index in range(number * body.n, (number + 1) * body.n):
                job = Submit(
                    request_id=f"{request_id}-{index}",
                    model=served.name,
                    prompt_token_ids=prompt,
                    sampling=replace(sampling, seed=choice_seed(seed, index)),
                    arrival_time=now,
                    priority=body.priority,
                    cache_salt=body.cache_salt,
                )
                choices.append(Choice(index, job, served.tokenizer.table, body.stop, continues=True))
        num_prompt_tokens = sum(map(len, prompts))
        return Generation(request_id, served.name, int(now), choices, num_prompt_tokens, body.n, started)

    async def answer(self, generation: Generation, body: CompletionBody) -> dict[str, object]:
        """The whole answer."""
        echoes = self._echoes(generation, body)
        texts = list(echoes)
        entries: list[list[TokenEntry]] = [[] for _ in generation.choices]
        async with aclosing(run(generation, self.services.engine, self.services.metrics)) as deltas:
            async for delta in deltas:
                texts[delta.index] += delta.text
                entries[delta.index] += delta.entries
        return {
            "id": generation.request_id,
            "object": "text_completion",
            "created": generation.created,
            "model": generation.model,
            "choices": [
                {
                    "index": choice.index,
                    "text": texts[choice.index],
                    "logprobs": self._logprobs(generation, body, entries[choice.index]),
                    "finish_reason": choice.finish_reason,
                }
                for choice in generation.choices
            ],
            "usage": generation.usage(),
        }

    async def events(self, generation: Generation, body: CompletionBody) -> AsyncGenerator[bytes]:
        """The answer as framed events."""
        echoes = self._echoes(generation, body)
        frames = ChunkFrames(
            generation,
            "text_completion",
            include_usage=body.stream_options.include_usage,
            continuous_usage=body.stream_options.continuous_usage_stats,
        )

        def frame(delta: Delta) -> bytes:
            text = echoes[delta.index] + delta.text
            echoes[delta.index] = ""
            logprobs = self._logprobs(generation, body, delta.entries)
            return frames.chunk(delta.index, b'"text":' + orjson.dumps(text), logprobs, delta.finish_reason)

        async with aclosing(run(generation, self.services.engine, self.services.metrics)) as deltas:
            async for delta in deltas:
                yield frame(delta)
        yield frames.end()

    def _echoes(self, generation: Generation, body: CompletionBody) -> list[str]:
        """What each choice's text begins with: its prompt, if the client wants that, else nothing."""
        if not body.echo:
            return [""] * len(generation.choices)
        tokenizer = self.services.shelf[generation.model].tokenizer
        texts = [item if isinstance(item, str) else tokenizer.decode(item) for item in body.prompt]
        return [text for text in texts for _ in range(body.n)]

    def _logprobs(
        self, generation: Generation, body: CompletionBody, entries: list[TokenEntry]
    ) -> dict[str, list[object]] | None:
        if body.logprobs is None:
            return None
        return completion_logprobs(entries, self.services.shelf[generation.model].tokenizer.table)


def _param(body: CompletionBody, number: int) -> str:
    return "prompt" if len(body.prompt) == 1 else f"prompt.{number}"


def _sampling(
    body: CompletionBody, served: ServedModel, ready: ModelReady, prompt: list[int], param: str
) -> SamplingParams:
    return resolve_sampling(
        body,
        served.defaults,
        ready,
        wanted=body.max_tokens or DEFAULT_MAX_TOKENS,
        room=token_room(ready, len(prompt), param),
        logprobs=body.logprobs,
    )


async def _tokenise(body: CompletionBody, served: ServedModel, ready: ModelReady) -> list[list[int]]:
    tokenizer = served.tokenizer

    def encode() -> list[list[int]]:
        return [
            item
            if isinstance(item, list)
            else tokenizer.encode(item, token_limit(ready), add_special_tokens=body.add_special_tokens)
            for item in body.prompt
        ]

    for number, item in enumerate(body.prompt):
        if isinstance(item, list):
            check_token_ids(item, ready, _param(body, number))
    prompts = await off_loop(sum(len(item) for item in body.prompt if isinstance(item, str)), encode)
    for number, prompt in enumerate(prompts):
        if not prompt:
            param = _param(body, number)
            raise ApiError(
                f"Invalid '{param}': the prompt has no tokens. Send some text or a begin token.",
                code="empty_string",
                param=param,
            )
    return prompts
