"""A turn's events as a chat completion: whole messages, and the deltas of a stream."""

from dataclasses import dataclass, field
from typing import Any

import orjson

from ..text.token_table import TokenTable
from .frames import ChunkFrames
from .logprobs import chat_logprobs, packed_chat_logprobs
from .turn_types import (
    ChoiceEnd,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    TurnEvent,
)
from .watched_text import TokenEntry


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How a request wants its answer.

    Attributes:
        logprobs: with log probabilities.
        legacy: calls are `function_call`, as clients that send `functions` expect.
    """

    logprobs: bool
    legacy: bool

    def finish_reason(self, end: ChoiceEnd) -> str:
        """OpenAI's word for it."""
        return "function_call" if self.legacy and end.finish_reason == "tool_calls" else end.finish_reason


class MessageBuilder:
    """One choice as it grows to a whole message."""

    def __init__(self, index: int, form: AnswerForm) -> None:
        self._index = index
        self._form = form
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[ToolCallStart, list[str]]] = []
        self._entries: list[TokenEntry] = []
        self._finish_reason: str | None = None

    def add(self, event: TurnEvent) -> None:
        """Take an event of this choice."""
        match event:
            case TextDelta(text=text, entries=entries):
                self._text.append(text)
                self._entries += entries
            case ReasoningDelta(text=text):
                self._reasoning.append(text)
            case ToolCallStart():
                self._calls.append((event, []))
            case ToolCallDelta(text=text):
                self._calls[-1][1].append(text)
            case ChoiceEnd():
                self._finish_reason = self._form.finish_reason(event)

    def choice(self, table: TokenTable) -> dict[str, object]:
        """The whole choice."""
        text = "".join(self._text)
        message: dict[str, object] = {
            "role": "assistant",
            "content": text if text or not self._calls else None,
            "refusal": None,
            **reasoning_fields("".join(self._reasoning)),
        }
        if self._calls and self._form.legacy:
            start, arguments = self._calls[0]
            message["function_call"] = {"name": start.tool.name, "arguments": "".join(arguments)}
        elif self._calls:
            message["tool_calls"] = [_call(start, "".join(text)) for start, text in self._calls]
        return {
            "index": self._index,
            "message": message,
            "logprobs": packed_chat_logprobs(self._entries, table) if self._form.logprobs else None,
            "finish_reason": self._finish_reason,
        }


def reasoning_fields(text: str) -> dict[str, str]:
    """Thinking, under the two names that clients read."""
    return {"reasoning_content": text, "reasoning": text} if text else {}


def _call(start: ToolCallStart, text: str) -> dict[str, object]:
    if start.tool.custom:
        return {"id": start.call_id, "type": "custom", "custom": {"name": start.tool.name, "input": text}}
    return {"id": start.call_id, "type": "function", "function": {"name": start.tool.name, "arguments": text}}


@dataclass(slots=True)
class _Begun:
    """A choice of a stream."""

    is_custom: bool = False
    """Whether its running call is of a custom tool."""


@dataclass(slots=True)
class DeltaFrames:
    """The events of a stream, framed."""

    frames: ChunkFrames
    form: AnswerForm
    table: TokenTable
    _begun: dict[int, _Begun] = field(default_factory=dict)

    def frame(self, event: TurnEvent) -> bytes:
        """An event's chunks; b"": it has none."""
        match event:
            case TextDelta(index=index, text=text, entries=entries):
                logprobs = chat_logprobs(entries, self.table) if self.form.logprobs else None
                content = b'"delta":{"content":' + orjson.dumps(text) + b"}"
                return self._role(index) + self.frames.chunk(index, content, logprobs, None)
            case ReasoningDelta(index=index, text=text):
                return self._role(index) + self._delta(index, reasoning_fields(text))
            case ToolCallStart(index=index, tool=tool):
                role = self._role(index, b"null")
                self._begun[index].is_custom = tool.custom
                return role + self._delta(index, self._call_start(event))
            case ToolCallDelta(index=index):
                return self._delta(index, self._call_delta(event))
            case ChoiceEnd(index=index):
                return self._role(index) + self.frames.chunk(index, b'"delta":{}', None, self.form.finish_reason(event))
            case _:
                return b""

    def sign_of_life(self) -> bytes:
        """Chunks that say nothing."""
        return self._role(0) or self._delta(0, {})

    def _role(self, index: int, content: bytes = b'""') -> bytes:
        """The first chunk of a choice, if it has not been."""
        if index in self._begun:
            return b""
        self._begun[index] = _Begun()
        return self.frames.chunk(index, b'"delta":{"role":"assistant","content":' + content + b"}", None, None)

    def _delta(self, index: int, delta: dict[str, Any]) -> bytes:
        return self.frames.chunk(index, b'"delta":' + orjson.dumps(delta), None, None)

    def _call_start(self, event: ToolCallStart) -> dict[str, object]:
        if self.form.legacy:
            return {"function_call": {"name": event.tool.name, "arguments": ""}}
        return {"tool_calls": [{"index": event.call_index, **_call(event, "")}]}

    def _call_delta(self, event: ToolCallDelta) -> dict[str, object]:
        if self.form.legacy:
            return {"function_call": {"arguments": event.text}}
        kind, key = ("custom", "input") if self._begun[event.index].is_custom else ("function", "arguments")
        return {"tool_calls": [{"index": event.call_index, kind: {key: event.text}}]}
