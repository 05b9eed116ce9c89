"""Qwen3-Coder: calls as tags, one for each argument, between <tool_call> and </tool_call>.

<tool_call>
<function=f>
<parameter=city>
Rome
</parameter>
</function>
</tool_call>
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..marker_search import MarkerSearch
from ..output_format import lark_string
from ..pieces import CallBegin, CallFinish, CallPart, Piece, PieceParser
from ..tools import Tool
from .block_parser import BlockParser, BlockReader, NoCallError
from .custom_block import UnwrappingReader, add_custom_blocks, custom_readers, fold_custom_calls
from .format import Block, CallGrammar, Message, lark_until
from .tokens import ControlTokens

_BEGIN, _END = "<tool_call>", "</tool_call>"
_VALUE_END = "\n</parameter>\n"
_MAX_TAG = 256
"""Characters of a tag."""


class QwenCoderFormat:
    """See ToolFormat."""

    reads_tools = True
    control_tokens = (_BEGIN, _END)

    def adapt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
        """See ToolFormat."""
        return fold_custom_calls(messages)

    def parser(self, tools: Mapping[str, Tool], tokens: ControlTokens) -> PieceParser:
        """See ToolFormat."""
        custom = {name for name, tool in tools.items() if tool.custom}

        def reader() -> BlockReader:
            return UnwrappingReader(TagReader(tools), custom)

        # Some models of the family forget the first tag.
        readers = {_BEGIN: reader, "<function=": lambda: UnwrappingReader(TagReader(tools, "<function="), custom)}
        return BlockParser(readers | custom_readers(tools), tokens.among(self.control_tokens))

    def grammar(self, tools: Sequence[Tool], tokens: ControlTokens, *, many: bool) -> CallGrammar:
        """See ToolFormat."""
        grammar = CallGrammar(between=r"/\n?/" if many else None)
        names = []
        for number, tool in enumerate(tools):
            if not tool.custom:
                _add_call(grammar, tool, f"call_{number}")
                names.append(f"call_{number}")
        if names:
            grammar.blocks.append(Block(_BEGIN, f"({' | '.join(names)}) {tokens.lark(_END)}"))
        add_custom_blocks(grammar, tools)
        return grammar


def _add_call(grammar: CallGrammar, tool: Tool, name: str) -> None:
    """A rule for one tool: required arguments in their order, then others, each in the form of its schema."""
    schema = tool.parameters or {}
    properties: Mapping[str, Any] = schema.get("properties") or {}
    body = []
    for number, (key, value) in enumerate(properties.items()):
        rule = f"{name}_{number}"
        if _is_text(value):
            choices = value.get("enum") if isinstance(value, dict) else None
            if choices and all(isinstance(choice, str) and choice for choice in choices):
                texts = " | ".join(map(lark_string, choices))
                grammar.rules.append(f"{rule}: ({texts}) {lark_string(_VALUE_END)}")
            else:
                grammar.rules.append(f"{rule}[lazy]: {lark_until(_VALUE_END)}")
        else:
            rooted = {**value, **{k: schema[k] for k in ("$defs", "definitions") if k in schema}}
            grammar.add_json(tool, rule, rooted, otherwise={}, end=_VALUE_END)
        part = f"{lark_string(f'<parameter={key}>{chr(10)}')} {rule}"
        body.append(part if key in (schema.get("required") or ()) else f"({part})?")
    head = lark_string(f"\n<function={tool.name}>\n")
    grammar.rules.append(f"{name}: {head} {' '.join(body)} {lark_string('</function>' + chr(10))}")


def _is_text(schema: object) -> bool:
    """Whether a value is written as it is, and not as JSON."""
    return not isinstance(schema, dict) or schema.get("type", "string") == "string" and "$ref" not in schema


class TagReader:
    """One call as tags, given out as JSON; see BlockReader.

    Args:
        tools: by name.
        begun: what has been read of the call already.
    """

    def __init__(self, tools: Mapping[str, Tool], begun: str = "") -> None:
        self.is_over = False
        self._tools = tools
        self._end_tag = "</function" if begun else "</tool_call"
        self._tags = begun  # text between values: tags and white space
        self._value: MarkerSearch | None = None  # looks for the end of the value that is read
        self._text: list[str] = []  # of a value that is converted when it is whole
        self._is_text = False
        self._first_of_value = False
        self._tool: Tool | None = None
        self._num_arguments = 0

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """See BlockReader."""
        pieces: list[Piece] = []
        while text and not self.is_over:
            text = self._feed_value(self._value, text, pieces) if self._value else self._feed_tags(text, pieces)
            if pieces and isinstance(pieces[-1], CallFinish):
                break
        return pieces, text

    def finish(self, *, complete: bool) -> list[Piece]:
        """See BlockReader."""
        if self._tool is None:
            raise NoCallError("the call is cut off")
        if not complete:
            return []
        pieces: list[Piece] = []
        if self._value is not None:
            self._take_value(self._value.flush(), pieces)
            self._end_value(pieces)
        self._end_call(pieces)
        return pieces

    def _feed_tags(self, text: str, pieces: list[Piece]) -> str:
        self._tags = (self._tags + text).lstrip()
        if self._tool is None and not "<function=".startswith(self._tags[:10]):
            raise NoCallError("a call begins with a function")
        tag, end, rest = self._tags.partition(">")
        if not end:
            if len(tag) > _MAX_TAG:
                raise NoCallError("a tag is not that long")
            return ""
        self._tags = ""
        kind, _, name = tag.partition("=")
        if self._tool is None:
            if name not in self._tools:
                raise NoCallError(f"there is no tool {name!r}")
            self._tool = self._tools[name]
            pieces += [CallBegin(name), CallPart("{")]
        elif kind == "<parameter":
            self._begin_value(name, pieces)
        elif tag == self._end_tag:
            self._end_call(pieces)
        return rest

    def _begin_value(self, name: str, pieces: list[Piece]) -> None:
        assert self._tool is not None
        properties = (self._tool.parameters or {}).get("properties") or {}
        self._is_text = _is_text(properties.get(name, {"type": ["string", "object"]}))
        self._value = MarkerSearch(["\n</parameter>", "</parameter>", "\n</function>"])
        self._first_of_value = True
        self._text = []
        comma = ", " if self._num_arguments else ""
        self._num_arguments += 1
        quote = '"' if self._is_text else ""
        pieces.append(CallPart(f"{comma}{json.dumps(name, ensure_ascii=False)}: {quote}"))

    def _feed_value(self, search: MarkerSearch, text: str, pieces: list[Piece]) -> str:
        if self._first_of_value:
            self._first_of_value = False
            text = text.removeprefix("\n")
        before, marker, after = search.feed(text)
        self._take_value(before, pieces)
        if marker is not None:
            self._end_value(pieces)
            if marker == "\n</function>" and self._end_tag in marker:
                self._end_call(pieces)
        return after

    def _take_value(self, text: str, pieces: list[Piece]) -> None:
        if self._is_text and text:
            pieces.append(CallPart(json.dumps(text, ensure_ascii=False)[1:-1]))
        elif text:
            self._text.append(text)

    def _end_value(self, pieces: list[Piece]) -> None:
        self._value = None
        pieces.append(CallPart('"' if self._is_text else _as_json("".join(self._text))))

    def _end_call(self, pieces: list[Piece]) -> None:
        pieces += [CallPart("}"), CallFinish()]
        self.is_over = True


def _as_json(text: str) -> str:
    """A value that is JSON, or, for models that write Python or nothing of the kind, as near to it as can be."""
    text = text.strip()
    try:
        json.loads(text)
        return text
    except ValueError:
        return {"True": "true", "False": "false", "None": "null"}.get(text) or json.dumps(text, ensure_ascii=False)
