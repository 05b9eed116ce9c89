"""Mistral: [TOOL_CALLS] before an array of JSON calls, or, in newer models, before each name and its arguments.

[TOOL_CALLS][{"name": "f", "arguments": {…}}]
[TOOL_CALLS]f[ARGS]{…}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{…}
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..output_format import lark_string
from ..pieces import CallBegin, CallFinish, Piece, PieceParser
from ..tools import Tool
from .block_parser import BlockParser, BlockReader, NoCallError
from .custom_block import UnwrappingReader, add_custom_blocks, custom_readers, fold_custom_calls
from .format import Block, CallGrammar, Message
from .json_block import JsonBlockFormat
from .json_calls import JsonArguments, JsonCallsReader
from .tokens import ControlTokens

_BEGIN, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_MAX_HEAD = 256
"""Characters of a name and an id."""


@dataclass(frozen=True, slots=True)
class MistralFormat:
    """See ToolFormat.

    Attributes:
        names_first: the newer form.
    """

    names_first: bool
    reads_tools = True
    control_tokens = (_BEGIN, _ID, _ARGUMENTS)

    def adapt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
        """See ToolFormat. The chat templates refuse ids that have not nine letters and digits."""
        return [_with_short_ids(message) for message in fold_custom_calls(messages)]

    def parser(self, tools: Mapping[str, Tool], tokens: ControlTokens) -> PieceParser:
        """See ToolFormat."""
        custom = {name for name, tool in tools.items() if tool.custom}

        def reader() -> BlockReader:
            return UnwrappingReader(MistralReader(tools), custom)

        return BlockParser({_BEGIN: reader} | custom_readers(tools), tokens.among(self.control_tokens))

    def grammar(self, tools: Sequence[Tool], tokens: ControlTokens, *, many: bool) -> CallGrammar:
        """See ToolFormat."""
        if not self.names_first:
            return JsonBlockFormat(begin=_BEGIN, is_array=True).grammar(tools, tokens, many=many)
        grammar = CallGrammar(between="" if many else None)
        for number, tool in enumerate(tools):
            if not tool.custom:
                arguments = grammar.add_arguments(tool, f"arguments_{number}")
                rest = f"{lark_string(tool.name)} {tokens.lark(_ARGUMENTS)} {arguments}"
                grammar.blocks.append(Block(_BEGIN, rest))
        add_custom_blocks(grammar, tools)
        return grammar


class MistralReader:
    """A block of either form; see BlockReader."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = tools
        self._array: JsonCallsReader | None = None
        self._arguments: JsonArguments | None = None
        self._head = ""
        self._done = False

    @property
    def is_over(self) -> bool:
        """See BlockReader."""
        return self._done or (self._array is not None and self._array.is_over)

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """See BlockReader."""
        if self._array is not None:
            return self._array.feed(text)
        if self._arguments is not None:
            return self._feed_arguments(self._arguments, text)
        self._head = (self._head + text).lstrip()
        if self._head.startswith(("[{", "{")) or (self._head.startswith("[") and self._head[1:2].isspace()):
            self._array = JsonCallsReader(self._tools)
            return self._array.feed(self._head)
        name, brace, rest = self._head.partition("{")
        if not brace:
            if len(self._head) > _MAX_HEAD:
                raise NoCallError("a name is not that long")
            return [], ""
        name = name.partition(_ID)[0].partition(_ARGUMENTS)[0].strip()
        if name not in self._tools:
            raise NoCallError(f"there is no tool {name!r}")
        self._arguments = JsonArguments()
        pieces, rest = self._feed_arguments(self._arguments, brace + rest)
        return [CallBegin(name), *pieces], rest

    def finish(self, *, complete: bool) -> list[Piece]:
        """See BlockReader."""
        if self._array is not None:
            return self._array.finish(complete=complete)
        if self._arguments is None:
            raise NoCallError("the call is cut off")
        return [CallFinish()] if complete else []

    def _feed_arguments(self, arguments: JsonArguments, text: str) -> tuple[list[Piece], str]:
        pieces, rest = arguments.feed(text)
        if arguments.is_complete or arguments.is_broken:  # where the broken ones should have ended nobody knows
            self._done = True
            pieces.append(CallFinish())
        return pieces, rest


def _with_short_ids(message: Message) -> Message:
    message = dict(message)
    if "tool_call_id" in message:
        message["tool_call_id"] = _short(message["tool_call_id"])
    if message.get("tool_calls"):
        message["tool_calls"] = [call | {"id": _short(call.get("id", ""))} for call in message["tool_calls"]]
    return message


def _short(call_id: str) -> str:
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]
