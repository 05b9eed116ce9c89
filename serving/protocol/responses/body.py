"""The bodies of POST /v1/responses, /v1/responses/input_tokens and /v1/responses/compact."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..body import RequestBody, invalid
from ..generation import SamplingBody
from ..metadata import Metadata
from ..other_fields import STREAM_OPTIONS
from ..output_format import FormatName, Schema, Strict
from .fates import COMPACT, INPUT_TOKENS, REASONING, RESPONSE
from .items import AdditionalToolsItem, CompactionTrigger, Items
from .tools import ToolChoiceSpec, Tools

MAX_TEXT_LENGTH = 10 * 2**20
"""Characters; OpenAI's limit."""
MAX_LABEL_LENGTH = 512
"""Characters of what clients call themselves; it comes back with the answer and is stored with it."""

Include = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Summary = Literal["auto", "concise", "detailed"]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"]


class Reasoning(RequestBody):
    """How much to think, and what to show of it."""

    other_fields = REASONING

    effort: Effort | None = None
    summary: Summary | None = None
    """Any: the thinking is given as the item's summary instead of as its content."""
    generate_summary: Summary | None = None
    """The older name of summary."""
    context: Literal["auto", "current_turn", "all_turns"] = "auto"
    """Whose thinking the model's template gets: current_turn: only what came after the last user message."""

    @property
    def shown_summary(self) -> Summary | None:
        """The summary asked for, under either name."""
        return self.summary or self.generate_summary


class OutputTextFormat(RequestBody):
    """The form that the answer's text must have."""

    type: Literal["text", "json_object", "json_schema"]
    name: FormatName = "response"
    description: str = ""
    schema_: Schema | None = Field(default=None, alias="schema")
    strict: Strict | None = None
    """Read for its type only: the schema is enforced either way."""

    @model_validator(mode="after")
    def _has_schema(self) -> "OutputTextFormat":
        if self.type == "json_schema" and self.schema_ is None:
            raise invalid("missing_required_parameter", "a json_schema format needs a schema. Send one.", "schema")
        return self


class TextConfig(RequestBody):
    """What kind of text is wanted."""

    format: OutputTextFormat = OutputTextFormat(type="text")
    verbosity: Literal["low", "medium", "high"] | None = None


class ConversationId(RequestBody):
    """A conversation by its id."""

    id: str = Field(min_length=1)


class StreamOptions(RequestBody):
    """How to stream."""

    other_fields = STREAM_OPTIONS


def _as_conversation(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


class _History(RequestBody):
    """What is before the answer: instructions, earlier answers, input and tools."""

    model: str = ""
    """Empty: the default model, if there is one."""
    input: Items = Field(default_factory=list)
    instructions: str | None = Field(default=None, max_length=MAX_TEXT_LENGTH)
    previous_response_id: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _trigger_is_last(self) -> Any:
        for index, item in enumerate(self.input[:-1]):
            if isinstance(item, CompactionTrigger):
                raise invalid("invalid_value", "a compaction trigger must be the last item.", f"input.{index}")
        return self


class _Context(_History):
    """The same, with what an answer and the count of its prompt depend on."""

    tools: Tools = Field(default_factory=list)
    tool_choice: ToolChoiceSpec = "auto"
    parallel_tool_calls: bool = True
    reasoning: Reasoning = Reasoning()
    text: TextConfig = TextConfig()
    truncation: Literal["auto", "disabled"] = "disabled"
    conversation: Annotated[
        ConversationId | None, BeforeValidator(_as_conversation, json_schema_input_type=str | ConversationId | None)
    ] = None

    @model_validator(mode="after")
    def _one_history(self) -> Any:
        if self.conversation is not None and self.previous_response_id is not None:
            raise invalid(
                "mutually_exclusive_parameters",
                "it excludes 'conversation', which has a history of its own. Leave one out.",
                "previous_response_id",
            )
        return self

    @property
    def all_tools(self) -> "Tools":
        """The tools of the body and of its input."""
        more = [tool for item in self.input if isinstance(item, AdditionalToolsItem) for tool in item.tools]
        return [*self.tools, *more]


class ResponseBody(_Context, SamplingBody):
    """POST /v1/responses."""

    other_fields = RESPONSE

    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    store: bool = True
    background: bool = False
    max_output_tokens: int | None = Field(default=None, ge=1)
    max_tool_calls: int | None = Field(default=None, ge=1)
    """Of tools that the server runs, of which there are none: it is never reached."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    include: list[Include] = Field(default_factory=list, max_length=64)
    metadata: Metadata = Field(default_factory=dict)
    service_tier: ServiceTier = "auto"
    safety_identifier: str | None = Field(default=None, max_length=64)
    prompt_cache_key: str | None = Field(default=None, max_length=MAX_LABEL_LENGTH)
    user: str | None = Field(default=None, max_length=MAX_LABEL_LENGTH)
    ttl: int | None = Field(default=None, ge=1, lt=2**31)

    @model_validator(mode="after")
    def _background_is_stored(self) -> Any:
        if self.background and not self.store:
            raise invalid(
                "invalid_value", "an answer in the background must be stored. Send store: true.", "background"
            )
        return self


class InputTokensBody(_Context):
    """POST /v1/responses/input_tokens."""

    other_fields = INPUT_TOKENS


class CompactBody(_History):
    """POST /v1/responses/compact."""

    other_fields = COMPACT

    service_tier: ServiceTier = "auto"
