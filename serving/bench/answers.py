"""Reads what the four endpoints answer: which events carry output, the usage counts, and errors in mid-stream.

Bodies are decoded into structs that name only the fields needed here, which checks their types and is faster than
building dictionaries: this code runs once per token.
"""

from collections.abc import Callable
from typing import Any

from msgspec import Struct, json

from .settings import EndpointName


class BadAnswerError(Exception):
    """The server answered 200 and then something else than the endpoint's answer.

    Attributes:
        kind: `malformed` (not the shape of the endpoint) or `server_error` (an error object inside the answer).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class TokenDetails(Struct, gc=False):
    """Part of the prompt that the server had cached."""

    cached_tokens: int | None = None


class Usage(Struct, gc=False):
    """OpenAI's usage object; responses call the same things input and output."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: TokenDetails | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: TokenDetails | None = None


class Delta(Struct, gc=False):
    """A chat message or a piece of one."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None

    def has_output(self) -> bool:
        """Whether generated tokens are in it."""
        return bool(self.content or self.reasoning_content or self.reasoning or self.tool_calls or self.refusal)


class Choice(Struct, gc=False):
    """One choice of chat (`delta` or `message`) or completions (`text`)."""

    delta: Delta | None = None
    text: str = ""
    finish_reason: str | None = None


class Chunk(Struct, gc=False):
    """A chunk, or the whole body, of chat and completions."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


class Response(Struct, gc=False):
    """The response object of /v1/responses."""

    status: str = ""
    usage: Usage | None = None
    error: Any = None


class ResponseEvent(Struct, gc=False):
    """An event of a response stream."""

    type: str
    delta: Any = None
    response: Response | None = None
    message: str | None = None
    error: Any = None


class EmbeddingsBody(Struct, gc=False):
    """Body of an embeddings answer."""

    data: list[Any]
    usage: Usage | None = None


class Answer:
    """What an answer has said so far.

    Attributes:
        has_usage: whether there was a usage object; without one the counts are 0.
        prompt_tokens: tokens of the prompt, chat template included.
        cached_tokens: those of them that the server took from a prefix cache.
        output_tokens: generated tokens.
        finished: whether the answer has come to its own end.
    """

    __slots__ = ("cached_tokens", "finished", "has_usage", "output_tokens", "prompt_tokens")

    def __init__(self) -> None:
        self.has_usage = False
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.finished = False

    def take_usage(self, usage: Usage) -> None:
        """Keep the counts; a later usage object replaces an earlier one, since some servers send running counts."""
        self.has_usage = True
        self.prompt_tokens = usage.prompt_tokens or usage.input_tokens
        self.output_tokens = usage.completion_tokens or usage.output_tokens
        details = usage.prompt_tokens_details or usage.input_tokens_details
        self.cached_tokens = (details.cached_tokens or 0) if details else 0


_decode_chunk = json.Decoder(Chunk).decode
_decode_event = json.Decoder(ResponseEvent).decode
_decode_response = json.Decoder(Response).decode
_decode_embeddings = json.Decoder(EmbeddingsBody).decode


def read_chunk(data: bytes, answer: Answer) -> bool:
    """Take in one event of a chat or completions stream.

    Returns:
        Whether it carries generated tokens.

    Raises:
        ValueError: it is not JSON, or not of the right shape.
        BadAnswerError: it is an error object.
    """
    if data == b"[DONE]":
        answer.finished = True
        return False
    chunk = _decode_chunk(data)
    if chunk.error is not None:
        raise BadAnswerError("server_error", _error_text(chunk.error))
    if chunk.usage is not None:
        answer.take_usage(chunk.usage)
    has_output = False
    for choice in chunk.choices or ():
        if choice.finish_reason is not None:
            answer.finished = True
        if choice.text or (choice.delta is not None and choice.delta.has_output()):
            has_output = True
    return has_output


def read_response_event(data: bytes, answer: Answer) -> bool:
    """Take in one event of a response stream; returns and raises as `read_chunk` does."""
    if data == b"[DONE]":  # not of OpenAI's protocol, but some servers send it
        return False
    event = _decode_event(data)
    if event.type.endswith(".delta"):
        return bool(event.delta)
    if event.type in ("error", "response.failed"):
        error = event.response.error if event.response is not None else event.error
        raise BadAnswerError("server_error", _error_text(error or event.message))
    if event.type in ("response.completed", "response.incomplete"):
        answer.finished = True
        if event.response is not None and event.response.usage is not None:
            answer.take_usage(event.response.usage)
    return False


def read_body(endpoint: EndpointName, body: bytes, num_texts: int) -> Answer:
    """The whole answer of a request that does not stream.

    Args:
        endpoint: whose answer it is.
        body: the HTTP body.
        num_texts: texts of an embeddings request, each of which must have come back.

    Raises:
        ValueError: it is not JSON, or not of the right shape.
        BadAnswerError: it is an error object, or lacks what was asked for.
    """
    answer = Answer()
    if endpoint == "embeddings":
        embeddings = _decode_embeddings(body)
        if len(embeddings.data) != num_texts:
            raise BadAnswerError("malformed", f"{len(embeddings.data)} embeddings for {num_texts} texts")
        usage = embeddings.usage
    elif endpoint == "responses":
        response = _decode_response(body)
        if response.status not in ("completed", "incomplete"):
            raise BadAnswerError("server_error", _error_text(response.error or f"status {response.status!r}"))
        usage = response.usage
    else:
        chunk = _decode_chunk(body)
        if chunk.error is not None:
            raise BadAnswerError("server_error", _error_text(chunk.error))
        if not chunk.choices:
            raise BadAnswerError("malformed", "an answer without choices")
        usage = chunk.usage
    if usage is not None:
        answer.take_usage(usage)
    answer.finished = True
    return answer


def _error_text(error: object) -> str:
    return str(error["message"]) if isinstance(error, dict) and "message" in error else str(error)


EVENT_READERS: dict[EndpointName, Callable[[bytes, Answer], bool]] = {
    "chat": read_chunk,
    "completions": read_chunk,
    "responses": read_response_event,
}
