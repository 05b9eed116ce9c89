"""The two shapes in which OpenAI reports log probabilities: chat's list of objects and the parallel lists of old."""

from collections.abc import Iterable, Sequence

from ..text.token_table import TokenTable
from .choice import TokenEntry

LOWEST = -9999.0
"""What OpenAI writes for a probability of zero, which JSON has no logarithm for."""


def chat_logprobs(entries: Iterable[TokenEntry], table: TokenTable) -> dict[str, object]:
    """`choices[].logprobs` of a chat; the bytes of its tokens, joined, are the bytes of its text."""
    return {
        "content": [
            _token(entry.token_id, entry.logprobs.logprob, table)
            | {"top_logprobs": [_token(i, p, table) for i, p in _top(entry)]}
            for entry in entries
        ],
        "refusal": None,
    }


def completion_logprobs(entries: Sequence[TokenEntry], table: TokenTable) -> dict[str, list[object]]:
    """`choices[].logprobs` of a completion.

    Args:
        entries: tokens of the text.
        table: the model's tokens.
    """
    return {
        "tokens": [_legacy_name(entry.token_id, table) for entry in entries],
        "token_logprobs": [_finite(entry.logprobs.logprob) for entry in entries],
        "top_logprobs": [
            {_legacy_name(i, table): _finite(p) for i, p in _top(entry)}
            | {_legacy_name(entry.token_id, table): _finite(entry.logprobs.logprob)}
            for entry in entries
        ],
        "text_offset": [entry.offset for entry in entries],
    }


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
