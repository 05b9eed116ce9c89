"""Scores pairs of texts, by a cross-encoder that reads both together or by the cosine of two embeddings."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penstock.scheduler.messages import Embed, ModelReady

from ..errors import ApiError, context_length_exceeded, wrong_kind
from ..principal import Principal
from ..protocol.rerank import ScoringBody
from ..text.served_model import EmbeddingInputRules, ServedModel
from ..text.threads import TextThreads
from .services import Services
from .text_length import check_text_length


@dataclass(frozen=True, slots=True)
class Pairs:
    """What is to be scored."""

    firsts: list[str]
    """As many as `seconds`, or a single one that goes with each of them."""
    seconds: list[str]
    first_params: list[str]
    """The request fields of `firsts`, for errors."""
    second_params: list[str]
    max_second: int | None = None
    """Cut second texts to so many tokens."""

    def both(self) -> list[tuple[str, str]]:
        """The pairs."""
        firsts = self.firsts * len(self.seconds) if len(self.firsts) == 1 else self.firsts
        return list(zip(firsts, self.seconds, strict=True))

    @property
    def num_characters(self) -> int:
        """Of all texts."""
        return sum(map(len, self.firsts)) + sum(map(len, self.seconds))


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says of some pairs."""

    model: str
    values: npt.NDArray[np.float32]
    """[pairs]: of a cross-encoder, in its own range; of embeddings the cosine, from -1 to 1."""
    num_tokens: int

    def usage(self) -> dict[str, object]:
        """OpenAI's usage object."""
        return {"prompt_tokens": self.num_tokens, "completion_tokens": 0, "total_tokens": self.num_tokens}


async def score_pairs(services: Services, body: ScoringBody, pairs: Pairs, principal: Principal) -> Scores:
    """Score every pair.

    Raises:
        ApiError: the request cannot be served as it is.
        EngineDeadError: the worker is gone.
        JobFailedError: the worker refused or lost the job.
    """
    for text, param in zip(pairs.firsts + pairs.seconds, pairs.first_params + pairs.second_params, strict=True):
        if not text:
            raise ApiError(
                f"Invalid '{param}': the text is empty. Send at least one character.", code="empty_string", param=param
            )
    served, ready = await services.find(body.model, None, ttl=body.ttl)
    match served.kind:
        case "generate":
            others = [model.name for model in services.served() if model.kind != "generate"]
            raise wrong_kind(body.model, served.kind, others)
        case "score":
            inputs, starts = await _encode_together(pairs, served, ready, body.truncate_prompt_tokens, services.threads)
        case "embed":
            inputs = await _encode_apart(pairs, served, ready, body.truncate_prompt_tokens, services.threads)
            starts = []
    output = await services.embed(
        Embed(
            request_id=f"score-{uuid.uuid4().hex}",
            model=served.name,
            inputs=inputs,
            arrival_time=time.time(),
            principal=principal.id,
            weight=principal.weight,
            priority=body.priority,
            second_starts=starts,
        ),
        principal,
    )
    services.metrics.count_embedded(served.name, len(inputs))
    rows = np.frombuffer(output.data, dtype="<f4").reshape(len(inputs), output.dim)
    values = rows[:, 0] if served.kind == "score" else _cosines(rows, len(pairs.firsts))
    return Scores(served.name, values, sum(map(len, inputs)))


def _cosines(vectors: npt.NDArray[np.float32], num_firsts: int) -> npt.NDArray[np.float32]:
    """[firsts + seconds, dim] to [seconds]."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    cosines: npt.NDArray[np.float32] = np.sum(unit[:num_firsts] * unit[num_firsts:], axis=1, dtype=np.float32)
    return cosines


async def _encode_together(
    pairs: Pairs, served: ServedModel, ready: ModelReady, cut: int | None, threads: TextThreads
) -> tuple[list[list[int]], list[int]]:
    """One input for each pair, and where in each the second text starts."""
    limit, max_length = _limits(served, ready, cut)
    _check_characters(pairs, served, limit, cuts=max_length is not None or pairs.max_second is not None)

    def encode() -> list[tuple[list[int], int]]:
        return served.tokenizer.encode_pairs(pairs.both(), limit, max_length=max_length, max_second=pairs.max_second)

    encoded = await threads.run(pairs.num_characters, encode)
    for (token_ids, _), param in zip(encoded, pairs.second_params, strict=True):
        _check_length(token_ids, limit, max_length, param, served)
    return [token_ids for token_ids, _ in encoded], [start for _, start in encoded]


async def _encode_apart(
    pairs: Pairs, served: ServedModel, ready: ModelReady, cut: int | None, threads: TextThreads
) -> list[list[int]]:
    """One input for each first and then for each second text."""
    limit, max_length = _limits(served, ready, cut)
    rules = served.input_rules
    firsts = [_prefixed(text, rules, ("query",)) for text in pairs.firsts]
    seconds = [_prefixed(text, rules, ("document", "passage")) for text in pairs.seconds]
    max_second = min((n for n in (max_length, pairs.max_second) if n is not None), default=None)
    _check_characters(pairs, served, limit, cuts=max_second is not None)

    def encode() -> list[list[int]]:
        inputs = served.tokenizer.encode_batch(firsts, limit)
        if max_second is None:
            return inputs + served.tokenizer.encode_batch(seconds, limit)
        return inputs + served.tokenizer.encode_batch_cut(seconds, max_second)

    inputs = await threads.run(pairs.num_characters, encode)
    for token_ids, param in zip(inputs, pairs.first_params + pairs.second_params, strict=True):
        _check_length(token_ids, limit, max_length, param, served)
    return inputs


def _limits(served: ServedModel, ready: ModelReady, cut: int | None) -> tuple[int, int | None]:
    """Tokens that the model takes, and to how many an input is cut, if at all."""
    limit = min(ready.max_model_len, served.input_rules.max_tokens or ready.max_model_len)
    return limit, None if cut is None else limit if cut == -1 else min(cut, limit)


def _check_characters(pairs: Pairs, served: ServedModel, limit: int, *, cuts: bool) -> None:
    """Of all texts but those that are cut."""
    for text, param in zip(pairs.firsts, pairs.first_params, strict=True):
        check_text_length(text, served, limit, param)
    for text, param in zip(pairs.seconds, pairs.second_params, strict=True):
        if not cuts:
            check_text_length(text, served, limit, param)


def _check_length(token_ids: list[int], limit: int, max_length: int | None, param: str, served: ServedModel) -> None:
    if not token_ids:
        raise ApiError(
            f"Invalid '{param}': the text has no tokens. Send some letters.", code="empty_string", param=param
        )
    if max_length is not None and len(token_ids) > max_length:
        what = "truncate_prompt_tokens, which never cuts queries,"
        raise context_length_exceeded(len(token_ids), max_length, what, param=param)
    if len(token_ids) > limit:
        raise context_length_exceeded(len(token_ids), limit, f"the model '{served.name}'", param=param)


def _prefixed(text: str, rules: EmbeddingInputRules, names: Sequence[str]) -> str:
    """A text with the model's own prompt for its role, or else the default one."""
    prefix = next((rules.prompts[name] for name in names if name in rules.prompts), rules.prefix)
    return prefix + (text.lower() if rules.lower_case else text)
