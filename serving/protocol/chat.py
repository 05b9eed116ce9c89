"""The body of POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, model_validator

from .body import RequestBody, invalid
from .counts import MAX_MESSAGES, MAX_PARTS, MAX_TOOLS
from .generation import GenerationBody, MaxTokens
from .metadata import Metadata
from .other_fields import CALL, CHAT, MESSAGE, PART
from .text_part import TextPartBody
from .tools import Function, FunctionCallSpec, Named, ToolChoiceSpec, ToolSpec

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
RESERVED_TEMPLATE_NAMES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
)
"""Variables of a chat template that the server sets."""


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _check_service_tier(value: Any) -> Any:
    if value in ("flex", "priority", "scale", "fast"):
        raise invalid("unsupported_parameter", f"there is no tier {value!r} here. Send auto or default.")
    return value


class ContentPart(TextPartBody):
    """One piece of a message: text, or an earlier refusal."""

    other_fields = PART
    unreadable = ("image_url", "input_audio", "file", "video_url", "audio_url")

    type: Literal["text", "refusal"]


_Parts = Annotated[list[ContentPart], Field(max_length=MAX_PARTS)]
Content = Annotated[_Parts, FailFast(), BeforeValidator(_as_parts, json_schema_input_type=str | _Parts)]


class FunctionCall(RequestBody):
    """A call that the assistant made earlier."""

    name: str
    arguments: str = "{}"


class CustomCall(RequestBody):
    """A call of a custom tool that the assistant made earlier."""

    name: str
    input: str = ""


class ToolCall(RequestBody):
    """One of an assistant message's earlier tool calls."""

    other_fields = CALL

    id: str = ""
    type: Literal["function", "custom"] = "function"
    function: FunctionCall | None = None
    custom: CustomCall | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ToolCall":
        other = "custom" if self.type == "function" else "function"
        if getattr(self, self.type) is None:
            raise invalid("missing_required_parameter", f"a call of type {self.type} needs it.", self.type)
        if getattr(self, other) is not None:
            raise invalid("invalid_value", f"it does not go with type {self.type}. Leave it out.", other)
        return self


class ChatMessage(RequestBody):
    """One message."""

    other_fields = MESSAGE

    role: Role
    content: Content = Field(default_factory=list)
    """A string becomes one text part."""
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Annotated[list[ToolCall], FailFast()] = Field(default_factory=list, max_length=MAX_TOOLS)
    function_call: FunctionCall | None = None
    """What tool_calls replaced."""
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> "ChatMessage":
        if (self.tool_calls or self.function_call) and self.role != "assistant":
            calls = "tool_calls" if self.tool_calls else "function_call"
            raise invalid("invalid_value", f"a {self.role} message makes no calls. Leave them out.", calls)
        if not self.content and self.role not in ("assistant", "function"):
            raise invalid("missing_required_parameter", f"a {self.role} message needs content. Send text.", "content")
        return self


class ChatCompletionBody(GenerationBody):
    """POST /v1/chat/completions."""

    other_fields = CHAT

    messages: Annotated[list[ChatMessage], FailFast()] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: MaxTokens = None
    """Wins over max_tokens."""
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """Given to the chat template as a variable; refused if it reads none of that name, as the next two are."""
    enable_thinking: bool | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """As reasoning_effort; "medium" asks for what models do anyway."""
    tools: Annotated[list[ToolSpec], FailFast()] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ToolChoiceSpec = "auto"
    parallel_tool_calls: bool = True
    functions: Annotated[list[Function], FailFast()] = Field(default_factory=list, max_length=MAX_TOOLS)
    """What tools replaced; calls come in the older form too."""
    function_call: FunctionCallSpec = "auto"
    store: bool = False
    metadata: Metadata = Field(default_factory=dict)
    service_tier: Annotated[Literal["auto", "default"] | None, BeforeValidator(_check_service_tier)] = None
    """Answered "default", if it is sent."""
    ttl: int | None = Field(default=None, ge=0, lt=2**31)
    """Seconds that the model stays after its last use, if this request loads it."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatCompletionBody":
        if self.top_logprobs and not self.logprobs:
            raise invalid("invalid_value", "it needs logprobs. Send logprobs: true.", "top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid(
                "invalid_value",
                "the last message cannot be continued after a generation prompt. Send add_generation_prompt: false.",
                "continue_final_message",
            )
        if self.continue_final_message and not self.messages[-1].content:
            raise invalid("invalid_value", "the last message has no text to continue.", "continue_final_message")
        if self.functions and self.tools:
            raise invalid("invalid_value", "it excludes 'tools', which replace it. Leave one out.", "functions")
        if self.functions and self.tool_choice != "auto":
            raise invalid(
                "invalid_value", "it chooses among 'tools'. Send function_call with functions.", "tool_choice"
            )
        if not self.functions and (
            isinstance(self.function_call, Named) or (self.tools and self.function_call != "auto")
        ):
            raise invalid(
                "invalid_value", "it chooses among 'functions'. Send tool_choice with tools.", "function_call"
            )
        names = [tool.function.name if tool.type == "function" else tool.custom.name for tool in self.tools]
        names += [function.name for function in self.functions]
        if len(set(names)) < len(names):
            name = next(name for index, name in enumerate(names) if name in names[:index])
            raise invalid(
                "invalid_value", f"two have the name '{name}'. Rename one.", "tools" if self.tools else "functions"
            )
        for name in self.chat_template_kwargs:
            if name in RESERVED_TEMPLATE_NAMES:
                raise invalid(
                    "invalid_value", "the server sets that variable. Leave it out.", f"chat_template_kwargs.{name}"
                )
        return self
