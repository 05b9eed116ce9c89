"""The answers of /v1/responses; its items and its stream's events are described by their type alone."""

from typing import Any, Literal

from .common import Answer

JsonObject = dict[str, Any]


class ResponseUsage(Answer):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class Response(Answer):
    """A response, finished or not."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    completed_at: int | None
    conversation: JsonObject | None
    error: JsonObject | None
    frequency_penalty: float | None
    incomplete_details: JsonObject | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str] | None
    model: str
    output: list[JsonObject]
    parallel_tool_calls: bool
    presence_penalty: float | None
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: JsonObject
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float | None
    text: JsonObject
    tool_choice: str | JsonObject
    tools: list[JsonObject]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    user: str = ""


class InputTokens(Answer):
    """How long a prompt is."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class CompactedResponse(Answer):
    """A conversation in one item."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[JsonObject]
    usage: ResponseUsage | None
