"""Legacy completions: several prompts, each with several choices, in one answer or one stream."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import orjson

from penstock.scheduler.messages import ModelReady, Submit, TokenLogprobs
from penstock.scheduler.sampling_params import SamplingParams

from ..errors import ApiError
from ..principal import Principal
from ..protocol.completion import CompletionBody
from ..text.output_format import ANYTHING, Grammar, grammar_of
from ..text.served_model import ServedModel
from ..text.threads import TextThreads
from .choice import Choice, Delta
from .completion_prompts import Prompt, read_prompts
from .frames import ChunkFrames, usage_body
from .generation import Generation, run
from .logprobs import LOGPROB_CHARACTERS, LogprobCount, completion_logprobs, echo_logprobs, packed, prompt_logprobs
from .output_format import resolve_output_format
from .sampling import choice_seed, resolve_sampling, token_room, wishes_of
from .services import Services
from .watched_text import TokenEntry

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""
MAX_PROMPT_LOGPROBS = 2**20
"""Log probabilities of prompts in one answer, which is then some seventy megabytes."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A checked request, ready to run."""

    body: CompletionBody
    served: ServedModel
    prompts: list[Prompt]
    choices: list[Choice]
    """Those of a prompt are neighbours."""
    generation: Generation[Delta]

    def prompt_of(self, index: int) -> Prompt:
        """The prompt that choice `index` continues."""
        return self.prompts[index // self.generation.choices_per_prompt]


@dataclass(slots=True)
class _Text:
    """What has come of one choice."""

    text: str = ""
    entries: list[TokenEntry] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        if delta.entries:
            self.entries.extend(delta.entries)

    @property
    def mean_logprob(self) -> float:
        """What `best_of` ranks by: of nothing, as good as certain."""
        values = [entry.logprobs.logprob for entry in self.entries]
        return sum(values) / len(values) if values else 0.0


@dataclass(frozen=True, slots=True)
class CompletionHandler:
    """POST /v1/completions, behind a validated body."""

    services: Services

    async def prepare(self, body: CompletionBody, principal: Principal) -> Completion:
        """Check a request against its model and tokenise its prompts.

        Raises:
            ApiError: the request cannot be served as it is.
            EngineDeadError: the worker is gone.
        """
        started = time.monotonic()
        served, ready = await self.services.find(body.model, "generate", ttl=body.ttl)
        prompts = await read_prompts(body, served, ready, self.services.threads)
        _check_num_logprobs(body, prompts)
        grammar = await _grammar(body, self.services.threads)
        request_id = f"cmpl-{uuid.uuid4().hex}"
        now = time.time()
        per_prompt = max(body.n, body.best_of or 0)
        seed = body.seed
        choices = []
        for number, prompt in enumerate(prompts):
            sampling = _sampling(body, served, ready, prompt, grammar)
            seed = sampling.seed if seed is None else seed  # one seed for the request, drawn or given
            for index in range(number * per_prompt, (number + 1) * per_prompt):
                job = Submit(
                    request_id=f"{request_id}-{index}",
                    model=served.name,
                    prompt_token_ids=prompt.token_ids,
                    sampling=replace(sampling, seed=choice_seed(seed, index)),
                    arrival_time=now,
                    principal=principal.id,
                    weight=principal.weight,
                    priority=body.priority,
                    cache_salt=body.cache_salt,
                    group=request_id,
                )
                choices.append(
                    Choice(
                        index,
                        job,
                        served.tokenizer.table,
                        body.stop,
                        keeps_end_token=True,
                        only_scores=body.max_tokens == 0,
                    )
                )
        num_prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        generation = Generation(
            request_id, served.name, principal, int(now), choices, num_prompt_tokens, per_prompt, started
        )
        return Completion(body, served, prompts, choices, generation)

    async def answer(self, completion: Completion) -> dict[str, object]:
        """The whole answer."""
        generation = completion.generation
        results, count = [_Text() for _ in generation.choices], LogprobCount()
        async with aclosing(run(generation, self.services)) as deltas:
            async for delta in deltas:
                results[delta.index].add(delta)
                count.add(delta.entries)

        num_logprobs = count.total + sum(len(choice.prompt_logprobs or ()) for choice in completion.choices)

        def choices() -> list[object]:
            return [
                packed(_answered_choice(completion, index, completion.choices[source], results[source]))
                for index, source in enumerate(_best(completion, results))
            ]

        return {
            "id": generation.request_id,
            "object": "text_completion",
            "created": generation.created,
            "model": generation.model,
            "choices": await self.services.threads.run(LOGPROB_CHARACTERS * num_logprobs, choices),
            "usage": usage_body(generation.usage()),
        }

    async def events(self, completion: Completion) -> AsyncGenerator[bytes]:
        """The answer as framed events."""
        generation, options = completion.generation, completion.body.stream_options
        frames = ChunkFrames(
            generation,
            "text_completion",
            include_usage=options.include_usage,
            continuous_usage=options.continuous_usage_stats,
        )
        begun: set[int] = set()

        def frame(delta: Delta) -> bytes:
            first = delta.index not in begun
            begun.add(delta.index)
            choice = completion.choices[delta.index]
            text = completion.prompt_of(delta.index).echo + delta.text if first else delta.text
            logprobs = _logprobs(completion, choice, delta.entries, with_echo=first)
            return frames.chunk(delta.index, b'"text":' + orjson.dumps(text), logprobs, delta.finish_reason)

        async with aclosing(run(generation, self.services)) as deltas:
            async for delta in deltas:
                yield frame(delta)
        yield frames.end()


def _sampling(
    body: CompletionBody, served: ServedModel, ready: ModelReady, prompt: Prompt, grammar: Grammar
) -> SamplingParams:
    """Of the first choice of a prompt."""
    ranked = body.best_of is not None and body.best_of > body.n
    of_prompt = [n for n in (body.logprobs if body.echo else None, body.prompt_logprobs) if n is not None]
    wishes = wishes_of(
        body,
        # The engine samples at least one token; a choice that only scores its prompt drops it.
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens or 1,
        logprobs=body.logprobs if body.logprobs is not None else 0 if ranked else None,
    )
    wishes = replace(
        wishes,
        stop_token_ids=(*wishes.stop_token_ids, *prompt.stop_token_ids),
        prompt_logprobs=max(of_prompt, default=None),
    )
    room = token_room(ready, len(prompt.token_ids), prompt.param)
    return resolve_sampling(wishes, served.defaults, ready, room=room, grammar=grammar)


def _check_num_logprobs(body: CompletionBody, prompts: list[Prompt]) -> None:
    """Refuse to make an answer of hundreds of megabytes, which would be kept until its client has read it."""
    wanted = {"prompt_logprobs": body.prompt_logprobs, "logprobs": body.logprobs if body.echo else None}
    num_tokens = sum(len(prompt.token_ids) for prompt in prompts) * body.n
    for param, num_top in wanted.items():
        if num_top is not None and (count := num_tokens * (num_top + 1)) > MAX_PROMPT_LOGPROBS:
            raise ApiError(
                f"Invalid '{param}': it asks for {count} log probabilities of {num_tokens} prompt tokens, and one "
                f"answer may have {MAX_PROMPT_LOGPROBS}. Send a smaller number, or fewer prompts at once.",
                code="integer_above_max_value",
                param=param,
            )


async def _grammar(body: CompletionBody, threads: TextThreads) -> Grammar:
    """What the choices' texts must match."""
    wanted = resolve_output_format(body)
    if wanted is None:
        return ANYTHING
    return Grammar(await threads.run(len(wanted.source), lambda: grammar_of(wanted)), wanted.param)


def _best(completion: Completion, results: list[_Text]) -> list[int]:
    """The choices that are returned: all, or the likeliest `n` of each prompt's `best_of`, best first."""
    n, made = completion.body.n, completion.generation.choices_per_prompt
    if made == n:
        return list(range(len(results)))
    groups = (range(first, first + made) for first in range(0, len(results), made))
    return [
        index for group in groups for index in sorted(group, key=lambda i: results[i].mean_logprob, reverse=True)[:n]
    ]


def _answered_choice(completion: Completion, index: int, choice: Choice, result: _Text) -> dict[str, object]:
    body = completion.body
    answer: dict[str, object] = {
        "index": index,
        "text": completion.prompt_of(choice.index).echo + result.text,
        "logprobs": _logprobs(completion, choice, result.entries, with_echo=True),
        "finish_reason": choice.finish_reason,
    }
    if body.prompt_logprobs is not None:
        ids, table = choice.job.prompt_token_ids, completion.served.tokenizer.table
        answer["prompt_logprobs"] = prompt_logprobs(ids, _of_prompt(choice), body.prompt_logprobs, table)
    return answer


def _logprobs(
    completion: Completion, choice: Choice, entries: list[TokenEntry], *, with_echo: bool
) -> dict[str, list[object]] | None:
    """`logprobs` of a choice or of a piece of it; the prompt's tokens come with the first piece, if at all."""
    body, table = completion.body, completion.served.tokenizer.table
    if body.logprobs is None:
        return None
    shift = len(completion.prompt_of(choice.index).echo)
    lists = completion_logprobs(entries, table, shift=shift)
    if not (body.echo and with_echo):
        return lists
    echoed = echo_logprobs(choice.job.prompt_token_ids, _of_prompt(choice), body.logprobs, table)
    return {key: echoed[key] + values for key, values in lists.items()}


def _of_prompt(choice: Choice) -> list[TokenLogprobs]:
    if choice.prompt_logprobs is None:
        raise ApiError("The worker has sent no log probabilities of the prompt.", status=500, code="internal_error")
    return choice.prompt_logprobs
