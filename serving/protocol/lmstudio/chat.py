"""The body of POST /api/v1/chat."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, model_validator

from ..body import RequestBody, invalid
from ..counts import MAX_PARTS
from ..explain import preview


class TextPart(RequestBody):
    """A text from the user; LM Studio's documents call it by either type."""

    type: Literal["message", "text"]
    content: str


def _only_text(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") == "image":
        raise invalid("unsupported_parameter", "images are not understood by the models here. Send texts.", "type")
    return value


def _as_parts(value: Any) -> Any:
    return [{"type": "message", "content": value}] if isinstance(value, str) else value


_Parts = Annotated[list[Annotated[TextPart, BeforeValidator(_only_text)]], Field(min_length=1, max_length=MAX_PARTS)]


class NativeChatBody(RequestBody):
    """POST /api/v1/chat."""

    model: str
    input: Annotated[_Parts, FailFast(), BeforeValidator(_as_parts, json_schema_input_type=str | _Parts)]
    system_prompt: str | None = None
    integrations: list[Any] = Field(default_factory=list)
    stream: bool = False
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=100)
    max_output_tokens: int | None = Field(default=None, ge=1)
    reasoning: Literal["off", "low", "medium", "high", "on"] | None = None
    context_length: int | None = Field(default=None, ge=1)
    """A model has one context length here; more than that is refused, less is always granted."""
    store: bool = True
    previous_response_id: str | None = None
    ttl: int | None = Field(default=None, ge=0, lt=2**31)
    """Seconds that the model stays after its last use, if this request loads it."""

    @model_validator(mode="after")
    def _check_fields(self) -> "NativeChatBody":
        if self.integrations:
            raise invalid(
                "not_implemented",
                "this server runs no plugins and connects to no MCP server. Send tools to /v1/chat/completions or "
                "/v1/responses, and run their calls yourself.",
                "integrations",
            )
        if self.previous_response_id is not None and not self.previous_response_id.startswith("resp_"):
            raise invalid(
                "invalid_value",
                f"{preview(self.previous_response_id)} is no id of a response. Send one that begins with resp_.",
                "previous_response_id",
            )
        return self
