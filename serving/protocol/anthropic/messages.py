"""The bodies of POST /v1/messages and /v1/messages/count_tokens."""

from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, model_validator

from ..body import Refused, RequestBody, Tolerated, invalid
from ..counts import MAX_MESSAGES, MAX_TOOLS
from ..generation import MAX_STOP_STRINGS, StopString
from .content import InputMessage, Texts, ToolResultBlock, ToolUseBlock
from .tools import AnyTool, ClientTool, ToolChoiceBody

_ONE_MACHINE = Tolerated("Everything is computed on this machine.")

PROMPT: dict[str, Tolerated | Refused] = {
    "cache_control": Tolerated("Prefix caching is always on and needs no hint."),
    "mcp_servers": Tolerated("This server connects to no MCP server.", only=([],)),
    "speed": Tolerated("There is one speed.", only=("standard",)),
    "user_profile_id": Tolerated("It names the caller, and nothing here depends on that."),
    "workspace_id": Tolerated("It names the caller, and nothing here depends on that."),
}
"""For both endpoints."""

CREATION: dict[str, Tolerated | Refused] = PROMPT | {
    "container": Refused("No code is run here."),
    "diagnostics": Tolerated("It asks for reports that may be empty."),
    "fallbacks": Tolerated("There are no refusals to fall back from."),
    "inference_geo": _ONE_MACHINE,
    "metadata": Tolerated("It names the caller, and nothing here depends on that."),
    "service_tier": Tolerated("There is one service tier.", only=("auto", "standard_only")),
}
"""For new messages."""


class Thinking(RequestBody):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    budget_tokens: int = Field(default=0, ge=0)
    """A wish: local models have no dial for it, and max_tokens bounds thinking and answer together."""
    display: Literal["summarized", "omitted"] = "summarized"
    """omitted: the thinking's text stays here."""


class JsonFormat(RequestBody):
    """The form of the answer's text."""

    other_fields = {"name": Tolerated("It labels the schema.")}

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(RequestBody):
    """How to answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class ContextManagement(RequestBody):
    """Rules that would shorten the prompt. Prompts are never cut here, and the answer says that no rule was applied."""

    edits: list[dict[str, Any]] = Field(default_factory=list)


class PromptBody(RequestBody):
    """What makes up the prompt."""

    other_fields = PROMPT

    model: str
    messages: Annotated[list[InputMessage], FailFast()] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: Texts = Field(default_factory=list)
    tools: Annotated[list[AnyTool], FailFast()] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ToolChoiceBody | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()
    output_format: JsonFormat | None = None
    """The older place of output_config.format."""
    context_management: ContextManagement | None = None
    ttl: int | None = Field(default=None, ge=0, lt=2**31)
    """LM Studio's: seconds that the model stays after its last use, if this request loads it."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "PromptBody":
        names = [tool.name for tool in self.tools if isinstance(tool, ClientTool)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise invalid("invalid_value", f"two tools are called {twice!r}. Give each its own name.", "tools")
        choice = self.tool_choice
        if choice is not None and choice.type == "tool" and choice.name not in names:
            offered = ", ".join(names) or "none"
            raise invalid(
                "invalid_value",
                f"there is no tool called {choice.name!r}. Name one of the tools that the model is offered: {offered}.",
                "tool_choice.name",
            )
        if choice is not None and choice.type == "any" and not names:
            raise invalid("invalid_value", "there is no tool that the model is offered. Send tools.", "tool_choice")
        self._check_calls()
        return self

    def _check_calls(self) -> None:
        """A call at the end has no result yet, and a result answers a call that was made."""
        if any(isinstance(block, ToolUseBlock) for block in self.messages[-1].content):
            raise invalid(
                "invalid_value",
                "the last message calls a tool, but nothing answers it. Send its tool_result in a user message.",
                f"messages.{len(self.messages) - 1}",
            )
        called: set[str] = set()
        for number, message in enumerate(self.messages):
            for index, block in enumerate(message.content):
                if isinstance(block, ToolUseBlock):
                    called.add(block.id)
                elif isinstance(block, ToolResultBlock) and block.tool_use_id not in called:
                    raise invalid(
                        "invalid_value",
                        f"no earlier message has a tool_use block with the id {block.tool_use_id!r}.",
                        f"messages.{number}.content.{index}.tool_use_id",
                    )


class MessagesBody(PromptBody):
    """POST /v1/messages."""

    other_fields = CREATION

    max_tokens: int = Field(ge=1)
    stream: bool = False
    stop_sequences: list[StopString] = Field(default_factory=list, max_length=MAX_STOP_STRINGS)
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
