"""The tools of a chat completion, the choice among them, and the older functions that they replace."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag

from .body import RequestBody
from .counts import MAX_TOOLS
from .other_fields import TOOL
from .output_format import Strict

ToolName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_.-]+$")]


class Function(RequestBody):
    """A function that the model may call with a JSON object."""

    other_fields = TOOL

    name: ToolName
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: Strict | None = None


class FunctionTool(RequestBody):
    """A function as a tool."""

    other_fields = TOOL

    type: Literal["function"]
    function: Function


class InputGrammar(RequestBody):
    """What a custom tool's text must match."""

    syntax: Literal["lark", "regex"]
    definition: str = Field(min_length=1)


class InputFormat(RequestBody):
    """The form of a custom tool's text."""

    type: Literal["text", "grammar"]
    grammar: InputGrammar | None = None


class Custom(RequestBody):
    """A tool that the model calls with free text."""

    other_fields = TOOL

    name: ToolName
    description: str = ""
    format: InputFormat = InputFormat(type="text")


class CustomTool(RequestBody):
    """A custom tool."""

    other_fields = TOOL

    type: Literal["custom"]
    custom: Custom


def type_tag(raw: Any) -> str:
    """Tells the members of a union of tools apart; the parentheses keep the tag out of error paths."""
    kind = raw.get("type") if isinstance(raw, dict) else getattr(raw, "type", None)
    return f"({kind})"


ToolSpec = Annotated[
    Annotated[FunctionTool, Tag("(function)")] | Annotated[CustomTool, Tag("(custom)")],
    Discriminator(
        type_tag,
        custom_error_type="invalid_value",
        custom_error_message="no tool of this type can be called here. Send tools of type function or custom.",
    ),
]


class Named(RequestBody):
    """A name alone."""

    other_fields = TOOL

    name: str = Field(min_length=1)


class NamedFunction(RequestBody):
    """One function by its name."""

    type: Literal["function"]
    function: Named


class NamedCustom(RequestBody):
    """One custom tool by its name."""

    type: Literal["custom"]
    custom: Named


NamedTool = Annotated[
    Annotated[NamedFunction, Tag("(function)")] | Annotated[NamedCustom, Tag("(custom)")],
    Discriminator(
        type_tag,
        custom_error_type="invalid_value",
        custom_error_message="name a tool of type function or custom.",
    ),
]


class AllowedTools(RequestBody):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedToolsChoice(RequestBody):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_tag(raw: Any) -> str:
    return "(mode)" if isinstance(raw, str) else type_tag(raw)


ToolChoiceSpec = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("(mode)")]
    | Annotated[NamedFunction, Tag("(function)")]
    | Annotated[NamedCustom, Tag("(custom)")]
    | Annotated[AllowedToolsChoice, Tag("(allowed_tools)")],
    Discriminator(
        _choice_tag,
        custom_error_type="invalid_value",
        custom_error_message="send none, auto, required, a named function or custom tool, or allowed_tools.",
    ),
]


def _function_call_tag(raw: Any) -> str:
    return "(mode)" if isinstance(raw, str) else "(named)"


FunctionCallSpec = Annotated[
    Annotated[Literal["none", "auto"], Tag("(mode)")] | Annotated[Named, Tag("(named)")],
    Discriminator(_function_call_tag),
]
