"""What a tool format is: how a family of models is told of tools, writes calls, and is held to the form of a call."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from penstock.scheduler.errors import RequestError

from ..output_format import OutputFormat, lark_json, lark_rule, lark_string
from ..pieces import PieceParser
from ..tools import Tool
from .tokens import ControlTokens

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Block:
    """How a model begins to call tools, and what must follow."""

    marker: str
    """The text or control token that begins the block; "": the block has none, and only an answer may begin with it."""
    rest: str
    """An expression of Lark for what follows it."""


@dataclass(slots=True)
class CallGrammar:
    """The part of a Lark grammar that is about calls."""

    blocks: list[Block] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    """Rules that the blocks refer to."""
    others: list[dict[str, Any]] = field(default_factory=list)
    """Grammars that the rules refer to."""
    loose: dict[str, str] = field(default_factory=dict)
    """By rules of tools that are not strict, those that stand in for them if the compiler does not take one."""
    params: dict[str, str] = field(default_factory=dict)
    """The request fields that rules and other grammars come from, by their names."""
    between: str | None = None
    """An expression for what may stand between two blocks; None: a second block may not follow."""

    def add_arguments(self, tool: Tool, name: str) -> str:
        """A rule for the JSON arguments of a tool; returns the rule's name.

        Raises:
            RequestError: the schema of a strict tool cannot be enforced.
        """
        anything: dict[str, Any] = {"type": "object"}
        self.add_json(tool, name, anything | dict(tool.parameters or {}), otherwise=anything)
        return name

    def add_json(self, tool: Tool, name: str, schema: object, *, otherwise: object, end: str = "") -> None:
        """A rule for JSON of a schema of a tool, or of another one if it cannot be enforced, with `end` after it.

        Raises:
            RequestError: the schema of a strict tool cannot be enforced.
        """
        after = f" {lark_string(end)}" if end else ""
        loose = f"{name}: {lark_json(otherwise, tool.param)}{after}"
        try:
            rule = f"{name}: {lark_json(schema, tool.param)}{after}"
        except RequestError:
            if tool.strict:
                raise
            rule = loose
        if rule != loose and not tool.strict:
            self.loose[rule] = loose
        self.rules.append(rule)
        self.params[name] = tool.param

    def loosened(self) -> "CallGrammar | None":
        """What it is if the compiler does not take it; None: the request is refused then."""
        return replace(self, rules=[self.loose.get(rule, rule) for rule in self.rules]) if self.loose else None

    def add_input(self, tool: Tool, name: str, end: str) -> str:
        """A rule for a custom tool's text and the end marker after it; returns the rule's name.

        Raises:
            RequestError: the tool's grammar is too large or none.
        """
        if tool.format is None:
            self.rules.append(f"{name}[lazy]: {lark_until(end)}" if end else f"{name}: /(.|\\n)*/")
            return name
        rule, others = lark_rule(OutputFormat(tool.format.syntax, tool.format.definition, tool.param), f"{name}_text")
        self.rules += [rule, f"{name}: {name}_text {lark_string(end)}" if end else f"{name}: {name}_text"]
        self.others += others
        self.params |= dict.fromkeys([f"{name}_text", *(other["name"] for other in others)], tool.param)
        return name


class ToolFormat(Protocol):
    """One family's way to call tools."""

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Tokens that the parser must see although they are no text."""

    @property
    def reads_tools(self) -> bool:
        """Whether the chat template is given the tools; else `adapt` writes them into the messages."""

    def adapt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
        """Messages as the family's chat template takes them; `tools` are those to offer."""

    def parser(self, tools: Mapping[str, Tool], tokens: ControlTokens) -> PieceParser:
        """A fresh parser that finds calls of these tools."""

    def grammar(self, tools: Sequence[Tool], tokens: ControlTokens, *, many: bool) -> CallGrammar:
        """What calls of these tools look like.

        Args:
            tools: at least one.
            tokens: the model's.
            many: several calls in one answer are allowed.

        Raises:
            RequestError: a tool's schema or grammar cannot be enforced.
        """


def lark_until(end: str) -> str:
    """A regular expression for any text up to and with `end`, for a lazy rule."""
    escaped = "".join(rf"\x{{{ord(c):x}}}" for c in end)
    return rf"/(.|\n)*{escaped}/"


def definition(tool: Tool) -> dict[str, Any]:
    """A function tool as chat templates know it."""
    parameters = tool.parameters if tool.parameters is not None else {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": dict(parameters)}
    return {"type": "function", "function": function}


def json_call_rule(grammar: CallGrammar, tools: Sequence[Tool], *, arguments_key: str = "arguments") -> str:
    """Adds rules for a call of any of the tools as a JSON object; returns the name of the rule."""
    names = []
    for number, tool in enumerate(tools):
        arguments = grammar.add_arguments(tool, f"arguments_{number}")
        head = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{arguments_key}": '
        grammar.rules.append(f'call_{number}: {lark_string(head)} {arguments} "}}"')
        names.append(f"call_{number}")
    grammar.rules.append(f"call: {' | '.join(names)}")
    return "call"


def arguments_object(arguments: object) -> dict[str, Any]:
    """The arguments of an earlier call as an object, even if the model wrote no JSON."""
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            value = None
        return value if isinstance(value, dict) else {"arguments": arguments}
    return arguments if isinstance(arguments, dict) else {}
