"""Formats that write calls as JSON objects between two markers, which most families do in one way or another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..output_format import lark_string
from ..pieces import PieceParser
from ..tools import Tool
from .block_parser import BlockParser, BlockReader
from .custom_block import UnwrappingReader, add_custom_blocks, custom_readers, fold_custom_calls
from .format import Block, CallGrammar, Message, json_call_rule
from .json_calls import JsonCallsReader
from .tokens import ControlTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonBlockFormat:
    """One of them; see ToolFormat."""

    begin: str
    end: str = ""
    """"": the block ends with the JSON."""
    padding: str = ""
    """Between the markers and the JSON."""
    is_array: bool = False
    """Calls stand in an array in one block, instead of each in its own."""
    arguments_key: str = "arguments"
    more_markers: tuple[str, ...] = ()
    """Further tokens that may begin a block."""
    reads_tools: bool = True

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """See ToolFormat."""
        return tuple(filter(None, (self.begin, self.end, *self.more_markers)))

    def adapt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
        """See ToolFormat."""
        return fold_custom_calls(messages)

    def parser(self, tools: Mapping[str, Tool], tokens: ControlTokens) -> PieceParser:
        """See ToolFormat."""
        readers = {marker: json_reader(tools, self.end) for marker in (self.begin, *self.more_markers)}
        return BlockParser(readers | custom_readers(tools), tokens.among(self.control_tokens))

    def grammar(self, tools: Sequence[Tool], tokens: ControlTokens, *, many: bool) -> CallGrammar:
        """See ToolFormat."""
        grammar = CallGrammar()
        functions = [tool for tool in tools if not tool.custom]
        if functions:
            call = json_call_rule(grammar, functions, arguments_key=self.arguments_key)
            if self.is_array:
                call = f'"[" {call} (", " {call})* "]"' if many else f'"[" {call} "]"'
            padding = lark_string(self.padding) if self.padding else ""
            end = tokens.lark(self.end) if self.end else ""
            grammar.blocks.append(Block(self.begin, f"{padding} {call} {padding} {end}"))
        add_custom_blocks(grammar, tools)
        if many:
            grammar.between = r"/\n?/"
        return grammar


def json_reader(tools: Mapping[str, Tool], end: str = "") -> Callable[[], BlockReader]:
    """Makes readers of blocks of JSON calls."""
    custom = {name for name, tool in tools.items() if tool.custom}
    if custom:
        return lambda: UnwrappingReader(JsonCallsReader(tools, end), custom)
    return lambda: JsonCallsReader(tools, end)
