"""The tools that a model may call, free of any protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class CustomFormat:
    """The grammar of a custom tool's input."""

    syntax: Literal["lark", "regex"]
    definition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One tool under the flat name that the model sees."""

    name: str
    """Unique in a request. A tool of a namespace is `namespace__name` here."""
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    """JSON Schema of the arguments object; None: any object. Unused by custom tools."""
    strict: bool = False
    """The arguments are held to the schema by a grammar."""
    custom: bool = False
    """Takes free text instead of a JSON object."""
    format: CustomFormat | None = None
    """Of a custom tool's text; None: any text."""
    param: str = "tools"
    """Dotted path of the request field that errors about its schema or grammar name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """Whether and what the model may call."""

    mode: Literal["none", "auto", "required"] = "auto"
    """required: it must call at least one."""
    allowed: tuple[str, ...] | None = None
    """Only these flat names; None: all. A named choice is `required` with one name."""
