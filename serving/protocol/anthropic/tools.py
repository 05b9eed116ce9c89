"""The tools of an Anthropic request, and which of them the model may or must use."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ..body import RequestBody, Tolerated


class ClientTool(RequestBody):
    """A tool that the client runs."""

    other_fields = {
        "allowed_callers": Tolerated("The model itself is the only caller."),
        "cache_control": Tolerated("Prefix caching is always on and needs no hint."),
        "defer_loading": Tolerated("Every tool is in the prompt."),
        "eager_input_streaming": Tolerated("Arguments are always streamed as they are written."),
    }

    type: Literal["custom"] = "custom"
    name: str = Field(min_length=1, max_length=128)
    description: str = ""
    input_schema: dict[str, Any]
    input_examples: list[dict[str, Any]] = Field(default_factory=list)
    strict: bool = False


def _tool_tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return "(other)" if isinstance(kind, str) and kind != "custom" else "(client)"


AnyTool = Annotated[
    Annotated[ClientTool, Tag("(client)")] | Annotated[dict[str, Any], Tag("(other)")], Discriminator(_tool_tag)
]
"""The second kind are tools that Anthropic runs, or whose form its models know by heart: no model here is offered one.

Agents send them without being asked and do without them, so they are no error.
"""


class ToolChoiceBody(RequestBody):
    """`tool_choice`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    """Of the one tool to use, for the type `tool`."""
    disable_parallel_tool_use: bool = False
