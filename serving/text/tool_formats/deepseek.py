"""DeepSeek V3 and R1: calls between control tokens of their own.

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f
    ```json
    {…}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

V3.1 writes the name and the arguments on either side of the separator, without a fence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..marker_search import MarkerSearch
from ..output_format import lark_string
from ..pieces import CallBegin, CallFinish, CallPart, Piece, PieceParser
from ..tools import Tool
from .block_parser import BlockParser, BlockReader, NoCallError
from .custom_block import UnwrappingReader, add_custom_blocks, custom_readers, fold_custom_calls
from .format import Block, CallGrammar, Message
from .json_calls import JsonArguments
from .prompted import add_tools_to_system
from .tokens import ControlTokens

_BEGIN, _END = "<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>"
_CALL, _CALL_END = "<\uff5ctool\u2581call\u2581begin\uff5c>", "<\uff5ctool\u2581call\u2581end\uff5c>"
_SEPARATOR = "<\uff5ctool\u2581sep\uff5c>"
_MAX_HEAD = 256
"""Characters of what stands before the arguments."""


@dataclass(frozen=True, slots=True)
class DeepSeekFormat:
    """See ToolFormat.

    Attributes:
        fenced: the older form.
        reads_tools: most chat templates of the family do not; they write calls, but know of no tools.
    """

    fenced: bool
    reads_tools: bool
    control_tokens = (_BEGIN, _END, _CALL, _CALL_END, _SEPARATOR)

    def adapt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
        """See ToolFormat."""
        adapted = fold_custom_calls(messages)
        if tools and not self.reads_tools:
            form = f"function{_SEPARATOR}NAME\n```json\nARGUMENTS\n```" if self.fenced else f"NAME{_SEPARATOR}ARGUMENTS"
            how = "To call tools, write this and nothing after it, with the arguments as a JSON object:\n"
            how += f"{_BEGIN}{_CALL}{form}{_CALL_END}{_END}\nAnswer without a call when no tool helps."
            add_tools_to_system(adapted, tools, how)
        return adapted

    def parser(self, tools: Mapping[str, Tool], tokens: ControlTokens) -> PieceParser:
        """See ToolFormat."""
        custom = {name for name, tool in tools.items() if tool.custom}

        def reader() -> BlockReader:
            return UnwrappingReader(DeepSeekReader(tools), custom)

        return BlockParser({_BEGIN: reader} | custom_readers(tools), tokens.among(self.control_tokens))

    def grammar(self, tools: Sequence[Tool], tokens: ControlTokens, *, many: bool) -> CallGrammar:
        """See ToolFormat."""
        grammar = CallGrammar()
        begin, end, separator = tokens.lark(_CALL), tokens.lark(_CALL_END), tokens.lark(_SEPARATOR)
        names = []
        for number, tool in enumerate(tools):
            if tool.custom:
                continue
            name, arguments = lark_string(tool.name), grammar.add_arguments(tool, f"arguments_{number}")
            if self.fenced:
                fence = lark_string(f"{tool.name}\n```json\n")
                body = f'"function" {separator} {fence} {arguments} {lark_string(chr(10) + "```")}'
            else:
                body = f"{name} {separator} {arguments}"
            grammar.rules.append(f"call_{number}: {begin} {body} {end}")
            names.append(f"call_{number}")
        if names:
            calls = f"({' | '.join(names)})" + ("+" if many and not self.fenced else "")
            if many and self.fenced:
                grammar.rules.append(f"call: {' | '.join(names)}")
                calls = r"call (/\n/ call)*"
            grammar.blocks.append(Block(_BEGIN, f"{calls} {tokens.lark(_END)}"))
        add_custom_blocks(grammar, tools)
        return grammar


class DeepSeekReader:
    """The calls after the begin token; see BlockReader."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self.is_over = False
        self._tools = tools
        self._head: str | None = ""  # before the arguments; None: within or after them
        self._arguments = JsonArguments()
        self._begun = False
        self._any_call = False
        self._end = MarkerSearch([_CALL_END, _END])

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """See BlockReader."""
        if self._head is not None:
            return self._feed_head(self._head + text)
        pieces: list[Piece] = []
        arguments = self._arguments
        if not arguments.is_complete and not arguments.is_broken:
            pieces, text = arguments.feed(text)
        if not arguments.is_complete and not arguments.is_broken:
            return pieces, text
        before, marker, after = self._end.feed(text)
        if arguments.is_broken and before:
            pieces.append(CallPart(before))
        if marker is not None:
            pieces.append(CallFinish())
            self._head, self._begun, self._arguments = "", False, JsonArguments()
            self.is_over = marker == _END
        return pieces, after

    def finish(self, *, complete: bool) -> list[Piece]:
        """See BlockReader."""
        if self._begun:
            return [CallFinish()] if complete or self._arguments.is_complete else []
        if (self._head or "").strip() or not self._any_call:
            raise NoCallError("the call is cut off")
        return []

    def _feed_head(self, head: str) -> tuple[list[Piece], str]:
        before_end, end, after_end = head.partition(_END)
        if end and "{" not in before_end:
            if not self._any_call:
                raise NoCallError("the block has no call")
            self.is_over = True
            return [], after_end
        before, brace, rest = head.partition("{")
        self._head = head
        if not brace:
            if len(head) > _MAX_HEAD:
                raise NoCallError("a name is not that long")
            return [], ""
        first, _, second = before.partition(_CALL)[2].partition(_SEPARATOR)
        name = (second.removesuffix("```json\n") if first.strip() == "function" else first).strip()
        if name not in self._tools:
            raise NoCallError(f"there is no tool {name!r}")
        self._head, self._begun, self._any_call = None, True, True
        pieces, rest = self.feed(brace + rest)
        return [CallBegin(name), *pieces], rest
