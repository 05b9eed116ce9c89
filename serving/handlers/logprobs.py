"""The two shapes in which OpenAI reports log probabilities: chat's list of objects and the parallel lists of old."""

from collections.abc import Iterable, Sequence

import orjson

from penstock.scheduler.messages import TokenLogprobs

from ..errors import ApiError
from ..text.detokenizer import Detokenizer
from ..text.token_table import TokenTable
from .watched_text import TokenEntry

LOWEST = -9999.0
"""What OpenAI writes for a probability of zero, which JSON has no logarithm for."""
MAX_LOGPROBS = 2**20
"""In one answer that is no stream; it is then some eighty megabytes."""

LOGPROB_CHARACTERS = 4
"""Writing one takes as long as tokenising so many characters."""


class LogprobCount:
    """The log probabilities of an answer that is kept until it is whole."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, entries: Sequence[TokenEntry]) -> None:
        """Count some more.

        Raises:
            ApiError: there are too many.
        """
        self.total += sum(1 + len(entry.logprobs.top_token_ids) for entry in entries)
        if self.total > MAX_LOGPROBS:
            raise ApiError(
                f"The answer has more than {MAX_LOGPROBS} log probabilities, as many as one may have. Ask for fewer "
                "choices or tokens or likeliest tokens, or send stream: true.",
                code="too_many_logprobs",
                param="logprobs",
            )


def packed(value: object) -> orjson.Fragment:
    """JSON that is part of an answer: a large answer made of such parts is put together in no time."""
    return orjson.Fragment(orjson.dumps(value))


def chat_logprobs(entries: Iterable[TokenEntry], table: TokenTable) -> dict[str, object]:
    """`choices[].logprobs` of a chat; the bytes of its tokens, joined, are the bytes of its text."""
    return {"content": [_chat_entry(entry, table) for entry in entries], "refusal": None}


def packed_chat_logprobs(entries: Iterable[TokenEntry], table: TokenTable) -> dict[str, object]:
    """The same with each token packed."""
    return {"content": [packed(_chat_entry(entry, table)) for entry in entries], "refusal": None}


def _chat_entry(entry: TokenEntry, table: TokenTable) -> dict[str, object]:
    top = [_token(token_id, logprob, table) for token_id, logprob in _top(entry)]
    return _token(entry.token_id, entry.logprobs.logprob, table) | {"top_logprobs": top}


def completion_logprobs(entries: Sequence[TokenEntry], table: TokenTable, *, shift: int = 0) -> dict[str, list[object]]:
    """`choices[].logprobs` of a completion.

    Args:
        entries: tokens of the text.
        table: the model's tokens.
        shift: characters before the text, such as an echoed prompt.
    """
    return {
        "tokens": [_legacy_name(entry.token_id, table) for entry in entries],
        "token_logprobs": [_finite(entry.logprobs.logprob) for entry in entries],
        "top_logprobs": [_legacy_top(entry.token_id, entry.logprobs, None, table) for entry in entries],
        "text_offset": [entry.offset + shift for entry in entries],
    }


def echo_logprobs(
    token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], num_top: int, table: TokenTable
) -> dict[str, list[object]]:
    """The same for an echoed prompt; its first token has null, since nothing predicts it.

    Args:
        token_ids: the prompt.
        logprobs: of all tokens but the first.
        num_top: likeliest tokens to name.
        table: the model's tokens.
    """
    detokenizer = Detokenizer(table, continues=False)
    offsets, num_characters = [], 0
    for token_id in token_ids:
        offsets.append(num_characters)
        num_characters += len(detokenizer.feed(token_id))
    rest = list(zip(token_ids[1:], logprobs, strict=True))
    return {
        "tokens": [_legacy_name(token_id, table) for token_id in token_ids],
        "token_logprobs": [None, *(_finite(entry.logprob) for _, entry in rest)],
        "top_logprobs": [None, *(_legacy_top(token_id, entry, num_top, table) for token_id, entry in rest)],
        "text_offset": list(offsets),
    }


def prompt_logprobs(
    token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], num_top: int, table: TokenTable
) -> list[object]:
    """`choices[].prompt_logprobs` as vLLM has it: null for the first token, then by token id what stood there.

    The rank of a prompt token is null when it is not among the likeliest that were asked for.
    """

    def entry(logprob: float, rank: int | None, token_id: int) -> dict[str, object]:
        return {"logprob": _finite(logprob), "rank": rank, "decoded_token": table.name(token_id)}

    answer: list[object] = [None]
    for token_id, chosen in zip(token_ids[1:], logprobs, strict=True):
        top = list(zip(chosen.top_token_ids, chosen.top_logprobs, strict=True))[:num_top]
        named = {str(i): entry(p, rank, i) for rank, (i, p) in enumerate(top, 1)}
        named.setdefault(str(token_id), entry(chosen.logprob, None, token_id))
        answer.append(named)
    return answer


def _legacy_top(token_id: int, logprobs: TokenLogprobs, num_top: int | None, table: TokenTable) -> dict[str, float]:
    """The likeliest tokens and the chosen one, by name."""
    top = list(zip(logprobs.top_token_ids, logprobs.top_logprobs, strict=True))[:num_top]
    named = {_legacy_name(i, table): _finite(p) for i, p in top}
    return named | {_legacy_name(token_id, table): _finite(logprobs.logprob)}


def _top(entry: TokenEntry) -> Iterable[tuple[int, float]]:
    return zip(entry.logprobs.top_token_ids, entry.logprobs.top_logprobs, strict=True)


def _token(token_id: int, logprob: float, table: TokenTable) -> dict[str, object]:
    return {
        "token": table.name(token_id),
        "logprob": _finite(logprob),
        "bytes": list(table.text_bytes(token_id)),
    }


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)


def _legacy_name(token_id: int, table: TokenTable) -> str:
    """A token's text; a part of a character is spelled out, since it is a key that must stay unique."""
    raw = table.text_bytes(token_id)
    try:
        return raw.decode() if raw else table.name(token_id)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
