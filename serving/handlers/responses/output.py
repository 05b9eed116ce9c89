"""The output of a response: the events of its turn become items, one open at a time, and the events about them."""

import uuid
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from ...text.token_table import TokenTable
from ..logprobs import chat_logprobs
from ..turn_types import ChoiceEnd, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallEnd, ToolCallStart, TurnEvent
from ..watched_text import TokenEntry
from .numbered import Event, Numbers
from .open_items import Item, OpenCall, OpenItem, OpenMessage, OpenReasoning, Status
from .sealed import seal
from .toolbox import Toolbox


class Output(Protocol):
    """What a turn's events add up to."""

    items: list[Item]
    """The complete ones."""
    is_cut: bool
    """The turn ended at its limit of tokens."""

    def feed(self, events: Iterable[TurnEvent]) -> list[Event]:
        """The stream's events for what is new."""
        ...


class ItemOutput:
    """The output of an ordinary turn.

    Args:
        numbers: of the stream.
        toolbox: the tools that may be called.
        table: the model's tokens.
        summarises: thinking is shown as a summary.
        seals: thinking is given as an opaque string too.
    """

    def __init__(self, numbers: Numbers, toolbox: Toolbox, table: TokenTable, *, summarises: bool, seals: bool) -> None:
        self.items: list[Item] = []
        self.is_cut = False
        self._numbers = numbers
        self._toolbox = toolbox
        self._table = table
        self._summarises = summarises
        self._seals = seals
        self._open: OpenItem | None = None

    def feed(self, events: Iterable[TurnEvent]) -> list[Event]:
        """The stream's events for what is new."""
        out: list[Event] = []
        for event in events:
            match event:
                case TextDelta(text=text, entries=entries):
                    if not isinstance(self._open, OpenMessage):
                        self._begin(OpenMessage, out)
                    self._add(text, self._logprobs(entries), out)
                case ReasoningDelta(text=text):
                    if not isinstance(self._open, OpenReasoning):
                        self._begin(self._reasoning, out)
                    self._add(text, [], out)
                case ToolCallStart():
                    self._begin(partial(self._call, event), out)
                case ToolCallDelta(text=text):
                    self._add(text, [], out)
                case ToolCallEnd():
                    self._end(out)
                case ChoiceEnd(finish_reason=reason):
                    self._finish(out, is_cut=reason == "length")
        return out

    def _begin(self, make: Callable[[Numbers, int], OpenItem], out: list[Event]) -> None:
        """Open an item; the one before it is complete."""
        self._end(out)
        self._open = make(self._numbers, len(self.items))
        out += self._open.begin()

    def _add(self, text: str, logprobs: list[Any], out: list[Event]) -> None:
        if self._open is not None:
            out.append(self._open.add(text, logprobs))

    def _end(self, out: list[Event], *, is_cut: bool = False) -> None:
        if self._open is not None:
            status: Status = "incomplete" if is_cut else "completed"
            out += self._open.end(status)
            self.items.append(self._open.item(status))
            self._open = None

    def _finish(self, out: list[Event], *, is_cut: bool) -> None:
        if self._open is None and not self.items:  # clients look for a message, even if the model said nothing
            self._begin(OpenMessage, out)
        self.is_cut = is_cut
        self._end(out, is_cut=is_cut)

    def _reasoning(self, numbers: Numbers, output_index: int) -> OpenReasoning:
        return OpenReasoning(numbers, output_index, as_summary=self._summarises, sealed=self._seals)

    def _call(self, start: ToolCallStart, numbers: Numbers, output_index: int) -> OpenCall:
        name, namespace = self._toolbox.split(start.tool.name)
        return OpenCall(
            numbers,
            output_index,
            call_id=start.call_id,
            name=name,
            namespace=namespace,
            custom=start.tool.custom,
        )

    def _logprobs(self, entries: list[TokenEntry]) -> list[Any]:
        return chat_logprobs(entries, self._table)["content"] if entries else []  # type: ignore[return-value]


class CompactionOutput:
    """The output of a turn that summarises the conversation: one compaction item."""

    def __init__(self, numbers: Numbers) -> None:
        self.items: list[Item] = []
        self.is_cut = False
        self._numbers = numbers
        self._id = f"cmp_{uuid.uuid4().hex}"
        self._pieces: list[str] = []

    def feed(self, events: Iterable[TurnEvent]) -> list[Event]:
        """Nothing before the end: a part of an opaque string is of no use."""
        out: list[Event] = []
        for event in events:
            match event:
                case TextDelta(text=text):
                    self._pieces.append(text)
                case ChoiceEnd():  # a summary that was cut is still what is left of the conversation
                    sealed = seal("compaction", "".join(self._pieces).strip())
                    item = {"id": self._id, "type": "compaction", "encrypted_content": sealed}
                    self.items.append(item)
                    for kind in ("added", "done"):
                        fields = {"output_index": 0, "item": item}
                        out.append(self._numbers.event(f"response.output_item.{kind}", fields))
        return out
