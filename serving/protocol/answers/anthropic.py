"""The answers of /v1/messages; content blocks and the stream's events are described by their type alone."""

from typing import Any, Literal

from .common import Answer


class MessageUsage(Answer):
    """Tokens of a message; the three kinds of input add up to the prompt."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: dict[str, int]
    service_tier: Literal["standard"]


class Message(Answer):
    """The assistant's message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    stop_details: None
    usage: MessageUsage
    context_management: dict[str, Any] | None = None


class MessageTokens(Answer):
    """How long a prompt is."""

    input_tokens: int


class AnthropicModel(Answer):
    """One model."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_input_tokens: int | None
    max_tokens: int | None
    capabilities: dict[str, Any] = {}


class AnthropicModels(Answer):
    """One page of the models."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None
