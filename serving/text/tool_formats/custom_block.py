"""Calls of custom tools for models that know JSON calls only: raw text between two tags.

Text that is no JSON, such as a patch, is written best as it is: within a JSON string every quote and line break would
have to be escaped. The tool's description asks for the tags.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..marker_search import MarkerSearch
from ..output_format import lark_string
from ..pieces import CallBegin, CallFinish, CallPart, Piece
from ..tools import Tool
from .block_parser import BlockReader
from .format import Block, CallGrammar, Message, definition

_END = "</custom_tool_call>"


def begin_tag(name: str) -> str:
    """What begins a call of the custom tool."""
    return f'<custom_tool_call name="{name}">'


def raw_call(name: str, text: str) -> str:
    """A whole call as the model writes it."""
    return f"{begin_tag(name)}\n{text}\n{_END}"


def any_definition(tool: Tool) -> dict[str, Any]:
    """A tool of either kind as chat templates know function tools."""
    if not tool.custom:
        return definition(tool)
    form = f"To call this tool do not write JSON. Write exactly:\n{raw_call(tool.name, 'the input')}"
    if tool.format is not None:
        form += f"\nThe input matches this {tool.format.syntax} grammar:\n{tool.format.definition}"
    schema = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    return definition(Tool(name=tool.name, description=f"{tool.description}\n\n{form}".strip(), parameters=schema))


def fold_custom_calls(messages: Sequence[Message]) -> list[Message]:
    """Earlier calls of custom tools as the text that the model wrote."""
    folded = []
    for message in messages:
        calls = message.get("tool_calls") or ()
        custom = [raw_call(call["custom"]["name"], call["custom"]["input"]) for call in calls if "custom" in call]
        if custom:
            kept = [call for call in calls if "custom" not in call]
            content = "\n".join(filter(None, [message["content"], *custom]))
            message = {key: value for key, value in message.items() if key != "tool_calls"} | {"content": content}
            if kept:
                message["tool_calls"] = kept
        folded.append(message)
    return folded


def custom_readers(tools: Mapping[str, Tool]) -> dict[str, Callable[[], BlockReader]]:
    """Readers of the tags for `BlockParser`."""

    def maker(name: str) -> Callable[[], BlockReader]:
        return lambda: RawReader(name)

    return {begin_tag(name): maker(name) for name, tool in tools.items() if tool.custom}


def add_custom_blocks(grammar: CallGrammar, tools: Sequence[Tool]) -> None:
    """Let the tags begin calls of the custom tools among `tools`."""
    for number, tool in enumerate(tools):
        if tool.custom:
            rule = grammar.add_input(tool, f"input_{number}", f"\n{_END}")
            grammar.blocks.append(Block(begin_tag(tool.name), f"{lark_string(chr(10))} {rule}"))


class RawReader:
    """The text of one call up to the end tag; see BlockReader. The line breaks next to the tags belong to them."""

    def __init__(self, name: str) -> None:
        self.is_over = False
        self._name: str | None = name  # until the call is begun
        self._search = MarkerSearch([f"\n{_END}", _END])

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """See BlockReader."""
        pieces: list[Piece] = []
        if self._name is not None:
            pieces.append(CallBegin(self._name))
            self._name = None
            text = text.removeprefix("\n")
        before, marker, after = self._search.feed(text)
        if before:
            pieces.append(CallPart(before))
        if marker is not None:
            self.is_over = True
            pieces.append(CallFinish())
        return pieces, after

    def finish(self, *, complete: bool) -> list[Piece]:
        """See BlockReader."""
        held = self._search.flush() if complete else ""  # of an end tag, if a limit has cut it
        pieces: list[Piece] = [CallPart(held)] if held else []
        if self._name is not None:
            pieces.insert(0, CallBegin(self._name))
        return [*pieces, CallFinish()] if complete else pieces


class UnwrappingReader:
    """Takes the text out of calls of custom tools that a model has written as JSON all the same; see BlockReader."""

    def __init__(self, reader: BlockReader, custom_names: Collection[str]) -> None:
        self._reader = reader
        self._custom_names = custom_names
        self._json: list[str] | None = None

    @property
    def is_over(self) -> bool:
        """See BlockReader."""
        return self._reader.is_over

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """See BlockReader."""
        pieces, rest = self._reader.feed(text)
        return self._unwrap(pieces), rest

    def finish(self, *, complete: bool) -> list[Piece]:
        """See BlockReader."""
        return self._unwrap(self._reader.finish(complete=complete))

    def _unwrap(self, pieces: list[Piece]) -> list[Piece]:
        unwrapped: list[Piece] = []
        for piece in pieces:
            match piece:
                case CallBegin(name=name):
                    self._json = [] if name in self._custom_names else None
                case CallPart(text=text) if self._json is not None:
                    self._json.append(text)
                    continue
                case CallFinish() if self._json is not None:
                    unwrapped.append(CallPart(_input_of("".join(self._json))))
                    self._json = None
            unwrapped.append(piece)
        return unwrapped


def _input_of(arguments: str) -> str:
    try:
        values = list(json.loads(arguments, strict=False).values())
    except (ValueError, AttributeError):
        return arguments
    return values[0] if len(values) == 1 and isinstance(values[0], str) else arguments
