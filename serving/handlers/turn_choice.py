"""One choice of a turn: the engine's tokens become events of thinking, text and tool calls."""

import uuid
from collections.abc import Mapping, Sequence

from penstock.scheduler.messages import RequestOutput, Submit, TokenLogprobs

from ..text.detokenizer import Detokenizer
from ..text.pieces import CallBegin, CallFinish, CallPart, Piece, PieceParser, PlainParser, ReasoningPiece, TextPiece
from ..text.tools import Tool
from .turn_types import (
    ChoiceEnd,
    FinishReason,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    TurnEvent,
)
from .watched_text import TokenEntry, WatchedText


class TurnChoice:
    """The state of one choice between the engine and a protocol.

    Args:
        index: its place in the answer.
        job: its job for the engine.
        detokenizer: fresh.
        parser: fresh; takes the text apart.
        stop: stop strings, which count in the text for the client only.
        tools: by name, those that the parser may call.
        max_calls: it ends after that many; 0: no limit.

    Attributes:
        num_tokens: tokens generated so far, an end token included.
        num_reasoning_tokens: of those, tokens of thinking and its markers.
        num_cached_tokens: prompt tokens that came from the prefix cache.
        finish_reason: None until it ends.
    """

    def __init__(
        self,
        index: int,
        job: Submit,
        detokenizer: Detokenizer,
        parser: PieceParser,
        stop: Sequence[str],
        tools: Mapping[str, Tool],
        max_calls: int,
    ) -> None:
        self.index = index
        self.job = job
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.num_cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._detokenizer = detokenizer
        self._parser = parser
        self._watched = WatchedText(stop)
        self._tools = tools
        self._max_calls = max_calls
        self._is_plain = isinstance(parser, PlainParser) and not stop and job.sampling.logprobs is None
        self._num_characters = 0  # of the raw text
        self._raw_entries: list[tuple[int, int, TokenLogprobs]] = []  # raw offset, token id: no text of theirs is out
        self._num_calls = 0  # begun
        self._num_complete_calls = 0
        self._arguments: list[str] = []  # of the running call

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it, if one did."""
        return self._watched.stop_string

    def feed(self, output: RequestOutput) -> list[TurnEvent]:
        """What the engine's output adds."""
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        events: list[TurnEvent] = []
        if not output.token_ids and output.num_computed_tokens and self.index == 0:
            events.append(PromptProgress(output.num_computed_tokens, len(self.job.prompt_token_ids)))
        num_text_tokens = len(output.token_ids) - (output.stop_token_id is not None)
        for position, token_id in enumerate(output.token_ids):
            self.num_tokens += 1
            if position >= num_text_tokens:  # the end token
                break
            if output.logprobs is not None:
                self._raw_entries.append((self._num_characters, token_id, output.logprobs[position]))
            reasoned = self._parser.is_reasoning
            self._take_text(self._detokenizer.feed(token_id), events)
            self.num_reasoning_tokens += reasoned or self._parser.is_reasoning
            if self.finish_reason is not None:
                return events
        if output.finish_reason is not None:
            self._finish(output.finish_reason, events)
        return events

    def _take_text(self, text: str, events: list[TurnEvent]) -> None:
        if not text:
            return
        if self._is_plain:
            self._add_text(text, [], events)
        else:
            pieces = self._parser.feed(text, self._num_characters)
            self._num_characters += len(text)
            self._take(pieces, events)

    def _finish(self, reason: str, events: list[TurnEvent]) -> None:
        self._take_text(self._detokenizer.flush(), events)
        if self.finish_reason is None:
            self._take(self._parser.finish(complete=reason == "stop"), events)
        if self.finish_reason is None:
            self._release_text(self._watched.flush(), events)
            self._end("length" if reason == "length" else "tool_calls" if self._num_complete_calls else "stop", events)

    def _end(self, reason: FinishReason, events: list[TurnEvent]) -> None:
        self.finish_reason = reason
        events.append(ChoiceEnd(self.index, reason, self.stop_string))

    def _take(self, pieces: list[Piece], events: list[TurnEvent]) -> None:
        for piece in pieces:
            match piece:
                case TextPiece(text=text, start=start):
                    self._take_answer(text, start, events)
                case ReasoningPiece(text=text):
                    self._take_reasoning(text, events)
                case CallBegin(name=name):
                    self._release_text(self._watched.flush(), events)
                    call_id = f"call_{uuid.uuid4().hex[:24]}"
                    events.append(ToolCallStart(self.index, self._num_calls, call_id, self._tools[name]))
                    self._num_calls += 1
                    self._arguments = []
                case CallPart(text=text):
                    self._take_arguments(text, events)
                case CallFinish():
                    events.append(ToolCallEnd(self.index, self._num_calls - 1, "".join(self._arguments)))
                    self._num_complete_calls += 1
                    if self._num_calls == self._max_calls:
                        self._end("tool_calls", events)
            if self.finish_reason is not None:
                return

    def _take_answer(self, text: str, start: int, events: list[TurnEvent]) -> None:
        num_entries = 0
        for offset, token_id, logprobs in self._raw_entries:
            if offset >= start + len(text):
                break
            num_entries += 1
            if offset >= start:  # those before belong to what is no text
                self._watched.add_token(token_id, logprobs, ahead=offset - start)
        del self._raw_entries[:num_entries]
        safe = self._watched.feed(text, watch=self.num_tokens > self.job.sampling.min_tokens)
        self._release_text(safe, events)
        if self.stop_string is not None:
            self._end("stop", events)

    def _release_text(self, text: str, events: list[TurnEvent]) -> None:
        entries = self._watched.release_entries()
        if text or entries:
            self._add_text(text, entries, events)

    def _add_text(self, text: str, entries: list[TokenEntry], events: list[TurnEvent]) -> None:
        if events and isinstance(last := events[-1], TextDelta):
            events[-1] = TextDelta(self.index, last.text + text, last.entries + entries)
        else:
            events.append(TextDelta(self.index, text, entries))

    def _take_reasoning(self, text: str, events: list[TurnEvent]) -> None:
        if events and isinstance(last := events[-1], ReasoningDelta):
            events[-1] = ReasoningDelta(self.index, last.text + text)
        else:
            events.append(ReasoningDelta(self.index, text))

    def _take_arguments(self, text: str, events: list[TurnEvent]) -> None:
        self._arguments.append(text)
        call_index = self._num_calls - 1
        if events and isinstance(last := events[-1], ToolCallDelta):
            events[-1] = ToolCallDelta(self.index, call_index, last.text + text)
        else:
            events.append(ToolCallDelta(self.index, call_index, text))
