"""What goes into a turn of an assistant and what comes out: a request, events and a usage, free of any protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..principal import EVERYBODY, Principal
from ..text.chat_template import Message
from ..text.output_format import OutputFormat
from ..text.tools import Tool, ToolChoice
from .watched_text import TokenEntry

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingWishes:
    """What a client says of sampling; None: it is silent, and the model's own defaults count."""

    max_tokens: int | None = None
    """None or -1: as many as fit."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    """None: none. n: the chosen token's and the n likeliest."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """What a protocol asks of the assistant."""

    request_id: str
    """Of the answer; the jobs in the engine are called after it."""
    model: str
    """As the client wrote it."""
    messages: Sequence[Message]
    """In the form of chat templates: role, content (text), name, tool_calls, tool_call_id, reasoning_content.

    A tool call is `{"id", "type": "function", "function": {"name", "arguments"}}`, its arguments JSON text or an
    object; one of a custom tool is `{"id", "type": "custom", "custom": {"name", "input"}}`."""
    param: str = "messages"
    """The request field that errors about the prompt name."""
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    parallel_tool_calls: bool = True
    output_format: OutputFormat | None = None
    sampling: SamplingWishes = field(default_factory=SamplingWishes)
    n: int = 1
    stop: Sequence[str] = ()
    reasoning_effort: str | None = None
    """"none" switches thinking off; others are given to the chat template, or switch thinking on."""
    enable_thinking: bool | None = None
    verbosity: str | None = None
    """Given to the chat template; "medium" is what a model does that knows no such variable."""
    style_is_hint: bool = False
    """The three above have no effect, instead of being refused, where the chat template reads no such variable."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables for the chat template, refused if it does not read them."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    context_length: int | None = None
    """Longest prompt and output together; None: what the model takes."""
    ttl: int | None = None
    """Seconds that the model stays after its last use, if this request loads it."""
    principal: Principal = EVERYBODY
    priority: int = 0
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """Nothing new yet, but the prompt is being computed."""

    num_computed_tokens: int
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the model's thinking."""

    index: int
    """Of the choice, as in all events below."""
    text: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer's text."""

    index: int
    text: str
    entries: list[TokenEntry] = field(default_factory=list)
    """Its tokens, if log probabilities were asked for."""


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """The model begins to call a tool; calls of a choice come one after the other."""

    index: int
    call_index: int
    """0, 1, … among the calls of this choice."""
    call_id: str
    """`call_…`, unique."""
    tool: Tool


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call's arguments: JSON text, or a custom tool's input."""

    index: int
    call_index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """A call is complete."""

    index: int
    call_index: int
    arguments: str
    """All of it."""


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """A choice is complete."""

    index: int
    finish_reason: FinishReason
    stop_string: str | None = None
    """The one of `stop` that ended it."""


TurnEvent = PromptProgress | ReasoningDelta | TextDelta | ToolCallStart | ToolCallDelta | ToolCallEnd | ChoiceEnd


@dataclass(frozen=True, slots=True)
class TurnUsage:
    """Tokens of a turn as of now."""

    prompt_tokens: int
    """Of all prompts, each counted once."""
    cached_tokens: int
    """Of those, found in the prefix cache."""
    completion_tokens: int
    reasoning_tokens: int
    """Of the completion tokens, spent on thinking."""
    accepted_tokens: int = 0
    """Guessed by speculation, and right; known when the worker has ended a job, which a stop string does not."""
    rejected_tokens: int = 0
    """Guessed, and wrong."""
