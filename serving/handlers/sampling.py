"""Resolves what a client asked, what the model's defaults say and what fits into complete sampling parameters."""

import random
from collections.abc import Iterable

from penstock.scheduler.messages import ModelReady
from penstock.scheduler.sampling_params import SamplingParams

from ..errors import ApiError, context_length_exceeded
from ..protocol.generation import SamplingBody
from ..text.output_format import ANYTHING, Grammar
from ..text.served_model import GenerationDefaults
from .turn_types import SamplingWishes

SMALLEST_TOP_P = 1e-6
"""For `top_p: 0`, which OpenAI allows: keeps the likeliest token alone, as 0 would."""


NO_LIMIT = -1
"""LM Studio's `max_tokens: -1`."""


def token_limit(ready: ModelReady) -> int:
    """Tokens that a prompt and its output can have together."""
    return min(ready.max_model_len, ready.num_kv_blocks * ready.block_size)


def token_room(ready: ModelReady, num_prompt_tokens: int, param: str, wanted_limit: int | None = None) -> int:
    """Tokens that can be generated after the prompt, at least 1.

    Args:
        ready: the model.
        num_prompt_tokens: the prompt's.
        param: the field that holds the prompt.
        wanted_limit: the longest prompt and output that the client wants; None: what the model takes.

    Raises:
        ApiError: context_length_exceeded, the prompt leaves no room.
    """
    limit = token_limit(ready)
    of = "context" if limit == ready.max_model_len else "KV cache"
    if wanted_limit is not None and wanted_limit < limit:
        limit, of = wanted_limit, "wanted context"
    if num_prompt_tokens >= limit:
        what = f"the {of} of '{ready.name}', prompt and output together,"
        raise context_length_exceeded(num_prompt_tokens, limit, what, param=param)
    return limit - num_prompt_tokens


def wishes_of(body: SamplingBody, *, max_tokens: int | None, logprobs: int | None) -> SamplingWishes:
    """What a body of OpenAI's generation endpoints says of sampling."""
    return SamplingWishes(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        seed=body.seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repeat_penalty if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=body.logit_bias,
        min_tokens=body.min_tokens,
        ignore_eos=body.ignore_eos,
        stop_token_ids=tuple(body.stop_token_ids),
        logprobs=logprobs,
    )


def resolve_sampling(
    wishes: SamplingWishes,
    defaults: GenerationDefaults,
    ready: ModelReady,
    *,
    room: int,
    grammar: Grammar = ANYTHING,
) -> SamplingParams:
    """Complete parameters of the first choice; further choices differ in their seed (`choice_seed`).

    Args:
        wishes: the request's; a limit of tokens beyond `room` is cut to it, since clients send 32000 blindly.
        defaults: the model's own values where the client is silent.
        ready: the model, for the range of token ids.
        room: what `token_room` says.
        grammar: what the output is held to.

    Raises:
        ApiError: a token id outside the vocabulary, or min_tokens above the limit of tokens.
    """
    wanted = NO_LIMIT if wishes.max_tokens is None else wishes.max_tokens
    if wanted != NO_LIMIT and wishes.min_tokens > wanted:
        raise ApiError(
            f"Invalid 'min_tokens': {wishes.min_tokens} is above max_tokens, {wanted}. Send that or less.",
            code="integer_above_max_value",
            param="min_tokens",
        )
    check_token_ids(wishes.logit_bias, ready, "logit_bias")
    check_token_ids(wishes.stop_token_ids, ready, "stop_token_ids")
    max_tokens = room if wanted == NO_LIMIT else min(wanted, room)
    top_k = int(_first(wishes.top_k, defaults.top_k))
    return SamplingParams(
        max_tokens=max_tokens,
        seed=draw_seed() if wishes.seed is None else wishes.seed,
        logit_bias=dict(wishes.logit_bias),
        repetition_penalty=_first(wishes.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=wishes.presence_penalty,
        frequency_penalty=wishes.frequency_penalty,
        min_tokens=min(wishes.min_tokens, max_tokens),
        temperature=_first(wishes.temperature, defaults.temperature),
        top_k=top_k if 0 < top_k < ready.vocab_size else 0,  # the engine's "all", whatever number said so
        top_p=max(SMALLEST_TOP_P, _first(wishes.top_p, defaults.top_p)),
        min_p=_first(wishes.min_p, defaults.min_p),
        stop_token_ids=wishes.stop_token_ids,
        ignore_eos=wishes.ignore_eos,
        logprobs=wishes.logprobs,
        prompt_logprobs=wishes.prompt_logprobs,
        grammar=grammar.source,
        grammar_param=grammar.param,
        grammar_params=dict(grammar.params),
        grammar_fallback=grammar.fallback,
    )


def draw_seed() -> int:
    """A seed for a request that names none."""
    return random.getrandbits(64) - 2**63


def choice_seed(seed: int, index: int) -> int:
    """The seed of choice `index` of a request: the request's own plus the index, within 64 bits."""
    return (seed + index + 2**63) % 2**64 - 2**63


def check_token_ids(token_ids: Iterable[int], ready: ModelReady, param: str) -> None:
    """Refuse ids that the model has no token for.

    Raises:
        ApiError: naming the first such id.
    """
    beyond = next((token_id for token_id in token_ids if token_id >= ready.vocab_size), None)
    if beyond is not None:
        raise ApiError(
            f"Invalid '{param}': token id {beyond} is not in the vocabulary of '{ready.name}'. "
            f"Send ids below {ready.vocab_size}.",
            code="invalid_value",
            param=param,
        )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
