"""The tools of a Responses request and the choice among them."""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    FailFast,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    Tag,
    model_validator,
)
from pydantic_core import CoreSchema

from ..body import RequestBody, invalid
from ..counts import MAX_TOOLS
from ..explain import preview
from ..tools import type_tag
from .fates import TOOL

ToolName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_.-]+$")]


class FunctionTool(RequestBody):
    """A function of the client's, called with a JSON object."""

    other_fields = TOOL

    type: Literal["function"]
    name: ToolName
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class GrammarFormat(RequestBody):
    """A custom tool's input must match a grammar."""

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str


class TextFormat(RequestBody):
    """A custom tool's input is any text."""

    type: Literal["text"]


InputFormat = Annotated[
    Annotated[GrammarFormat, Tag("(grammar)")] | Annotated[TextFormat, Tag("(text)")],
    Discriminator(
        type_tag, custom_error_type="invalid_value", custom_error_message="send a format of type grammar or text."
    ),
]


class CustomTool(RequestBody):
    """A function of the client's, called with free text."""

    other_fields = TOOL

    type: Literal["custom"]
    name: ToolName
    description: str = ""
    format: InputFormat = TextFormat(type="text")


MemberTool = Annotated[
    Annotated[FunctionTool, Tag("(function)")] | Annotated[CustomTool, Tag("(custom)")],
    Discriminator(
        type_tag,
        custom_error_type="invalid_value",
        custom_error_message="a namespace holds function and custom tools. Send only those.",
    ),
]


class NamespaceTool(RequestBody):
    """Several tools under a common name."""

    other_fields = TOOL

    type: Literal["namespace"]
    name: ToolName
    description: str = ""
    tools: list[MemberTool] = Field(min_length=1, max_length=MAX_TOOLS)


class OtherTool(RequestBody):
    """A tool that OpenAI's servers run, such as web_search: accepted, and not offered to the model."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]
    settings: dict[str, Any]
    """All of it, as the client sent it."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Any object whose type is another's."""
        kind = {"type": "string", "minLength": 1, "maxLength": 64, "not": {"enum": ["function", "custom", "namespace"]}}
        return {"type": "object", "properties": {"type": kind}, "required": ["type"]}

    @model_validator(mode="before")
    @classmethod
    def _keep_settings(cls, raw: Any) -> Any:
        return {"type": raw.get("type"), "settings": raw} if isinstance(raw, dict) else raw


def _tool_tag(raw: Any) -> str:
    tag = type_tag(raw)
    return tag if tag in ("(function)", "(custom)", "(namespace)") else "(other)"


ToolSpec = Annotated[
    Annotated[FunctionTool, Tag("(function)")]
    | Annotated[CustomTool, Tag("(custom)")]
    | Annotated[NamespaceTool, Tag("(namespace)")]
    | Annotated[OtherTool, Tag("(other)")],
    Discriminator(_tool_tag),
]
Tools = Annotated[list[ToolSpec], FailFast(), Field(max_length=MAX_TOOLS)]


class NamedTool(RequestBody):
    """One tool by its name."""

    type: Literal["function", "custom", "namespace"]
    name: str = Field(min_length=1)
    namespace: str | None = None


def _named_or_other(raw: Any) -> Any:
    if isinstance(raw, dict) and raw.get("type") not in ("function", "custom", "namespace"):
        raise invalid(
            "unsupported_parameter",
            f"a tool of type {preview(raw.get('type'))} is not run here, so the model cannot call it. "
            "Name a function, custom or namespace tool.",
            "type",
        )
    return raw


Named = Annotated[NamedTool, BeforeValidator(_named_or_other)]


class AllowedTools(RequestBody):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"] = "auto"
    tools: list[Named] = Field(min_length=1, max_length=MAX_TOOLS)


def _choice_tag(raw: Any) -> str:
    if isinstance(raw, str):
        return "(mode)"
    return "(allowed)" if type_tag(raw) == "(allowed_tools)" else "(named)"


ToolChoiceSpec = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("(mode)")]
    | Annotated[AllowedTools, Tag("(allowed)")]
    | Annotated[Named, Tag("(named)")],
    Discriminator(_choice_tag),
]
