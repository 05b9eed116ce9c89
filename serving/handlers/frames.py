"""Frames stream chunks from byte templates: per event only what changes is encoded."""

from typing import Any

import orjson

from ..sse import DONE
from .generation import Generation
from .turn_types import TurnUsage


def usage_body(usage: TurnUsage) -> dict[str, object]:
    """OpenAI's usage object, with what became of guessed tokens where some were computed."""
    details = {"reasoning_tokens": usage.reasoning_tokens}
    if usage.accepted_tokens or usage.rejected_tokens:
        details["accepted_prediction_tokens"] = usage.accepted_tokens
        details["rejected_prediction_tokens"] = usage.rejected_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": details,
    }


class ChunkFrames:
    """The events of one stream.

    Args:
        generation: whose stream it is.
        kind: the chunks' `object`.
        include_usage: end with a usage chunk, and say `usage: null` before it.
        continuous_usage: say the usage so far in every chunk.
    """

    def __init__(self, generation: Generation[Any], kind: str, *, include_usage: bool, continuous_usage: bool) -> None:
        head = {"id": generation.request_id, "object": kind, "created": generation.created, "model": generation.model}
        self._generation = generation
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._plain_tail = b',"logprobs":null,"finish_reason":null}]' + self._tail

    def chunk(self, index: int, content: bytes, logprobs: object, finish_reason: str | None) -> bytes:
        """One chunk of one choice; `content` is its encoded member, such as `"text":"hi"`."""
        if logprobs is None and finish_reason is None and not self._continuous_usage:  # nearly all
            return b'%b{"index":%d,%b%b' % (self._head, index, content, self._plain_tail)
        return b"".join(
            (
                self._head,
                b'{"index":%d,' % index,
                content,
                b',"logprobs":',
                b"null" if logprobs is None else orjson.dumps(logprobs),
                b',"finish_reason":',
                orjson.dumps(finish_reason),
                b"}]",
                self._usage_tail() if self._continuous_usage else self._tail,
            )
        )

    def end(self) -> bytes:
        """What ends the stream: the usage chunk if it is wanted, and the end mark."""
        if not self._include_usage:
            return DONE
        return self._head + b"]" + self._usage_tail() + DONE

    def _usage_tail(self) -> bytes:
        return b',"usage":' + orjson.dumps(usage_body(self._generation.usage())) + b"}\n\n"
