"""What the assistant does, as the content blocks of an Anthropic message: whole, or as the events of a stream."""

from collections.abc import Mapping
from typing import Any

import orjson

from ...sse import typed_event
from ..turn_types import (
    ChoiceEnd,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    TurnEvent,
)

SIGNATURE = "penstock"
"""Clients want thinking to be signed, so that Anthropic knows its own; nothing here depends on it."""
PING = typed_event({"type": "ping"})
_BLOCK_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%b}\n\n'
_TEXT = b'{"type":"text_delta","text":%b}'
_THINKING = b'{"type":"thinking_delta","thinking":%b}'
_JSON = b'{"type":"input_json_delta","partial_json":%b}'
_SIGNATURE = orjson.dumps({"type": "signature_delta", "signature": SIGNATURE})


def tool_use_id(call_id: str) -> str:
    """Anthropic's form of a call's id."""
    return f"toolu_{call_id.removeprefix('call_')}"


class ContentEvents:
    """Frames a turn's events as those of content blocks, which come one after the other.

    Args:
        shows_thinking: the text of the thinking goes out too.

    Attributes:
        end: how the turn has ended, if it has.
    """

    def __init__(self, *, shows_thinking: bool) -> None:
        self.end: ChoiceEnd | None = None
        self._shows_thinking = shows_thinking
        self._num_blocks = 0
        self._open: str | None = None

    def feed(self, event: TurnEvent) -> bytes:
        """The frames that an event adds; none for the end of the choice but that of an open block."""
        match event:
            case TextDelta(text=text):
                return self._delta("text", {"text": ""}, _TEXT, text) if text else b""
            case ReasoningDelta(text=text):
                start = {"thinking": "", "signature": ""}
                return self._delta("thinking", start, _THINKING, text if self._shows_thinking else "")
            case ToolCallStart(call_id=call_id, tool=tool):
                return self._start("tool_use", {"id": tool_use_id(call_id), "name": tool.name, "input": {}})
            case ToolCallDelta(text=text):
                return _DELTA % (self._num_blocks - 1, _JSON % orjson.dumps(text)) if text else b""
            case ToolCallEnd():
                return self._stop()
            case ChoiceEnd():
                self.end = event
                return self._stop()
            case PromptProgress():
                return PING

    def _delta(self, kind: str, start: Mapping[str, object], form: bytes, text: str) -> bytes:
        framed = b"" if self._open == kind else self._start(kind, start)
        return framed + _DELTA % (self._num_blocks - 1, form % orjson.dumps(text)) if text else framed

    def _start(self, kind: str, fields: Mapping[str, object]) -> bytes:
        framed = self._stop()
        block = {"type": kind, **fields}
        framed += typed_event({"type": "content_block_start", "index": self._num_blocks, "content_block": block})
        self._num_blocks += 1
        self._open = kind
        return framed

    def _stop(self) -> bytes:
        if self._open is None:
            return b""
        index = self._num_blocks - 1
        signature = _DELTA % (index, _SIGNATURE) if self._open == "thinking" else b""
        self._open = None
        return signature + _BLOCK_STOP % index


class Content:
    """Collects a turn's events into whole blocks.

    Args:
        shows_thinking: the text of the thinking is kept too.

    Attributes:
        end: how the turn has ended, if it has.
        blocks: what there is so far.
    """

    def __init__(self, *, shows_thinking: bool) -> None:
        self.end: ChoiceEnd | None = None
        self.blocks: list[dict[str, Any]] = []
        self._shows_thinking = shows_thinking
        self._pieces: list[str] = []  # of the last block's text

    def feed(self, event: TurnEvent) -> None:
        """Take the next event."""
        match event:
            case TextDelta(text=text) if text:
                self._grow("text", text)
            case ReasoningDelta(text=text):
                self._grow("thinking", text if self._shows_thinking else "")
            case ToolCallStart(call_id=call_id, tool=tool):
                self._finish()
                self.blocks.append({"type": "tool_use", "id": tool_use_id(call_id), "name": tool.name, "input": {}})
            case ToolCallDelta(text=text):
                self._pieces.append(text)
            case ToolCallEnd():
                self._finish()
            case ChoiceEnd():
                self.end = event
                self._finish()

    def _grow(self, kind: str, text: str) -> None:
        if not self.blocks or self.blocks[-1]["type"] != kind:
            self._finish()
            self.blocks.append({"type": kind})
        self._pieces.append(text)

    def _finish(self) -> None:
        text = "".join(self._pieces)
        self._pieces = []
        if not self.blocks:
            return
        block = self.blocks[-1]
        match block["type"]:
            case "text" if "text" not in block:
                block["text"] = text
            case "thinking" if "thinking" not in block:
                block |= {"thinking": text, "signature": SIGNATURE}
            case "tool_use" if text:
                block["input"] = _arguments(text)


def _arguments(text: str) -> dict[str, Any]:
    """A call's arguments; what is no object, being cut short, comes under the name that Anthropic gives such text."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": text}
