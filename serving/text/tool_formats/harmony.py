"""gpt-oss's harmony: an answer is a row of messages on channels for thinking, for calls and for the client.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>
    <|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>

The prompt ends with <|start|>assistant. <|return|> and <|call|> end the answer.
"""

import re
from collections.abc import Mapping, Sequence

from ..marker_search import MarkerSearch
from ..output_format import lark_string
from ..pieces import CallBegin, CallFinish, CallPart, Piece, PieceParser, ReasoningPiece, TextPiece
from ..tools import Tool
from .format import Block, CallGrammar, Message
from .tokens import ControlTokens

START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
_CONSTRAIN, _CALL, _RETURN = "<|constrain|>", "<|call|>", "<|return|>"
_RECIPIENT = re.compile(r"to=(?:functions\.)?([^\s<]+)")
_CHANNEL_NAME = re.compile(rf"{re.escape(CHANNEL)}\s*(\w+)")
_HEADS = ("<|", "assistant", "to=")
"""How a header can begin; anything else is text without one."""
_MAX_HEADER = 512
"""Characters of a message's header."""


class HarmonyFormat:
    """See ToolFormat."""

    reads_tools = True
    control_tokens = (START, CHANNEL, MESSAGE, END, _CONSTRAIN, _CALL, _RETURN)

    def adapt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
        """See ToolFormat. Earlier thinking has another name in the chat template."""
        return [_adapted(message) for message in messages]

    def parser(self, tools: Mapping[str, Tool], tokens: ControlTokens) -> PieceParser:
        """See ToolFormat."""
        return HarmonyParser(tools)

    def grammar(self, tools: Sequence[Tool], tokens: ControlTokens, *, many: bool) -> CallGrammar:
        """See ToolFormat. An answer ends with its first call."""
        grammar = CallGrammar()
        for number, tool in enumerate(tools):
            to = f"commentary to=functions.{tool.name}"
            if tool.custom:
                body = grammar.add_input(tool, f"input_{number}", "")
                rest = f"{lark_string(to)} {tokens.lark(MESSAGE)} {body}"
            else:
                body = grammar.add_arguments(tool, f"arguments_{number}")
                kind = f'{tokens.lark(_CONSTRAIN)} "json"'
                rest = f"{lark_string(to + ' ')} {kind} {tokens.lark(MESSAGE)} {body}"
            grammar.blocks.append(Block(CHANNEL, rest))
        return grammar


HARMONY = HarmonyFormat()


class HarmonyParser:
    """Takes the messages of an answer apart; see PieceParser.

    Args:
        tools: by name, those that may be called; text for others is for the client.
    """

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = tools
        self._header: str | None = ""  # of the message that begins; None: within a body
        self._body = MarkerSearch([END, _CALL, _RETURN, START, CHANNEL, MESSAGE, _CONSTRAIN])
        self._kind = "text"  # or reasoning, call, hidden
        self._end = 0

    @property
    def is_reasoning(self) -> bool:
        """See PieceParser."""
        return self._header is None and self._kind == "reasoning"

    def feed(self, text: str, start: int) -> list[Piece]:
        """See PieceParser."""
        self._end = start + len(text)
        pieces: list[Piece] = []
        while text:
            text = self._feed_header(text, pieces) if self._header is not None else self._feed_body(text, pieces)
        return pieces

    def finish(self, *, complete: bool) -> list[Piece]:
        """See PieceParser."""
        pieces: list[Piece] = []
        if self._header is None:
            self._give(self._body.flush(), self._end, pieces)
            if self._kind == "call" and complete:
                pieces.append(CallFinish())
        return pieces

    def _feed_header(self, text: str, pieces: list[Piece]) -> str:
        assert self._header is not None
        self._header += text
        begun = self._header.lstrip()
        if begun and not any(begun.startswith(head) or head.startswith(begun) for head in _HEADS):
            rest, self._header, self._kind = self._header, None, "text"  # text without a header
            return rest
        header, marker, rest = self._header.partition(MESSAGE)
        if marker:
            self._header = None
            self._begin(header, pieces)
            return rest
        if len(self._header) > _MAX_HEADER:
            self._header, self._kind = None, "hidden"
        return ""

    def _begin(self, header: str, pieces: list[Piece]) -> None:
        recipient = _RECIPIENT.search(header)
        channel = _CHANNEL_NAME.search(header)
        if recipient is not None and recipient[1] in self._tools:
            self._kind = "call"
            pieces.append(CallBegin(recipient[1]))
        elif channel is not None and channel[1] == "analysis":
            self._kind = "reasoning"
        else:
            self._kind = "text"

    def _feed_body(self, text: str, pieces: list[Piece]) -> str:
        before, marker, after = self._body.feed(text)
        end = self._end - len(after) - (len(marker) if marker else len(self._body.held))
        self._give(before, end, pieces)
        if marker is not None and marker not in (MESSAGE, _CONSTRAIN):  # which have no place here, and are no text
            if self._kind == "call":
                pieces.append(CallFinish())
            self._header = marker if marker in (START, CHANNEL) else ""
        return after

    def _give(self, text: str, end: int, pieces: list[Piece]) -> None:
        if not text:
            return
        match self._kind:
            case "text":
                pieces.append(TextPiece(text, end - len(text)))
            case "reasoning":
                pieces.append(ReasoningPiece(text))
            case "call":
                pieces.append(CallPart(text))


def _adapted(message: Message) -> Message:
    message = dict(message)
    if "reasoning_content" in message:
        message["thinking"] = message.pop("reasoning_content")
    if message.get("tool_calls"):
        message["tool_calls"] = [
            call
            if "custom" not in call
            else {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["custom"]["name"], "arguments": call["custom"]["input"]},
            }
            for call in message["tool_calls"]
        ]
    return message
