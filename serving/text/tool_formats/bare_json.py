"""Formats in which an answer that is a JSON object with a name and arguments is a call, with no marker needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..pieces import PieceParser
from ..tools import Tool
from .block_parser import BlockParser
from .custom_block import add_custom_blocks, custom_readers, fold_custom_calls
from .format import Block, CallGrammar, Message, json_call_rule
from .json_block import json_reader
from .tokens import ControlTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class BareJsonFormat:
    """One of them; see ToolFormat. Such models make one call at a time."""

    markers: tuple[str, ...] = ()
    """What may stand before the object all the same."""
    arguments_key: str = "arguments"
    reads_tools: bool = True

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """See ToolFormat."""
        return self.markers

    def adapt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
        """See ToolFormat. The chat templates refuse messages of several calls."""
        return split_calls(fold_custom_calls(messages))

    def parser(self, tools: Mapping[str, Tool], tokens: ControlTokens) -> PieceParser:
        """See ToolFormat."""
        reader = json_reader(tools)
        readers = dict.fromkeys(self.markers, reader) | custom_readers(tools)
        return BlockParser(readers, tokens.among(self.markers), at_start=("{", reader))

    def grammar(self, tools: Sequence[Tool], tokens: ControlTokens, *, many: bool) -> CallGrammar:
        """See ToolFormat."""
        grammar = CallGrammar()
        functions = [tool for tool in tools if not tool.custom]
        if functions:
            call = json_call_rule(grammar, functions, arguments_key=self.arguments_key)
            grammar.blocks += [Block("", call), *(Block(marker, call) for marker in self.markers)]
        add_custom_blocks(grammar, tools)
        return grammar


def split_calls(messages: Sequence[Message]) -> list[Message]:
    """Messages of several calls as one message for each call, followed by its result."""
    split: list[Message] = []
    results = {message.get("tool_call_id"): message for message in messages if message["role"] == "tool"}
    taken: set[str] = set()
    for message in messages:
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            if message["role"] != "tool" or message.get("tool_call_id") not in taken:
                split.append(message)
            continue
        for number, call in enumerate(calls):
            split.append(message | {"tool_calls": [call], "content": "" if number else message["content"]})
            if (result := results.get(call.get("id"))) is not None:
                split.append(result)
                taken.add(call["id"])
    return split
