"""The answers of /v1/chat/completions."""

from typing import Literal

from .common import Answer, Usage

FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


class TopLogprob(Answer):
    """One candidate for a token."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """One token of the text."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """Log probabilities of a choice's tokens."""

    content: list[TokenLogprob]
    refusal: None


class CalledFunction(Answer):
    """What is called."""

    name: str
    arguments: str
    """JSON, as the model has written it."""


class CalledTool(Answer):
    """The input of a custom tool."""

    name: str
    input: str


class FunctionToolCall(Answer):
    """One call of a function."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class CustomToolCall(Answer):
    """One call of a custom tool."""

    id: str
    type: Literal["custom"]
    custom: CalledTool


class AnsweredMessage(Answer):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    reasoning: str = ""
    """The same once more: clients read one name or the other."""
    tool_calls: list[FunctionToolCall | CustomToolCall] = []
    function_call: CalledFunction | None = None


class ChatChoice(Answer):
    """One choice."""

    index: int
    message: AnsweredMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Answer):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: str = "default"
    metadata: dict[str, str] | None = None


class FunctionDelta(Answer):
    """What is new in a called function."""

    name: str = ""
    arguments: str = ""


class ToolDelta(Answer):
    """What is new in a called custom tool."""

    name: str = ""
    input: str = ""


class ToolCallDelta(Answer):
    """What is new in one call."""

    index: int
    id: str = ""
    type: Literal["function", "custom"] = "function"
    function: FunctionDelta = FunctionDelta()
    custom: ToolDelta = ToolDelta()


class MessageDelta(Answer):
    """What is new in a message."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: None = None
    reasoning_content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    function_call: FunctionDelta = FunctionDelta()


class ChatChunkChoice(Answer):
    """What is new in one choice."""

    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Answer):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    service_tier: str = "default"
