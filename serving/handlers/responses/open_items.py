"""The output item that is being made: message, thinking or call, each with the events of its beginning, middle and end.

All items have the same life: `begin`, `add` for every piece, `end`. What a piece costs does not depend on what came
before it; texts are joined once, at the end.
"""

import uuid
from collections.abc import Iterator
from typing import Any, Literal, Protocol

from .numbered import Event, Numbers
from .sealed import seal

Item = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]


class OpenItem(Protocol):
    """One item in the making."""

    def begin(self) -> Iterator[Event]:
        """The events before its first piece."""
        ...

    def add(self, text: str, logprobs: list[Any]) -> Event:
        """The event of a piece."""
        ...

    def end(self, status: Status) -> Iterator[Event]:
        """The events after its last piece."""
        ...

    def item(self, status: Status) -> Item:
        """The item as it is now."""
        ...


class _Base:
    """The pieces of an item, and events about it."""

    def __init__(self, numbers: Numbers, output_index: int, prefix: str) -> None:
        self.id = f"{prefix}_{uuid.uuid4().hex}"
        self._numbers = numbers
        self._output_index = output_index
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All pieces."""
        return "".join(self._pieces)

    def _item_event(self, kind: str, item: Item) -> Event:
        return self._numbers.event(f"response.output_item.{kind}", {"output_index": self._output_index, "item": item})

    def _event(self, kind: str, **fields: Any) -> Event:
        return self._numbers.event(
            f"response.{kind}", {"item_id": self.id, "output_index": self._output_index, **fields}
        )


class OpenMessage(_Base):
    """Text for the user."""

    def __init__(self, numbers: Numbers, output_index: int) -> None:
        super().__init__(numbers, output_index, "msg")
        self._logprobs: list[Any] = []

    def begin(self) -> Iterator[Event]:
        """The item without content, and its only part."""
        yield self._item_event("added", self._message([], "in_progress"))
        yield self._event("content_part.added", content_index=0, part=_output_text("", []))

    def add(self, text: str, logprobs: list[Any]) -> Event:
        """A piece of text."""
        self._pieces.append(text)
        self._logprobs += logprobs
        return self._event("output_text.delta", content_index=0, delta=text, logprobs=logprobs)

    def end(self, status: Status) -> Iterator[Event]:
        """Text, part and item, whole."""
        text = self.text
        yield self._event("output_text.done", content_index=0, text=text, logprobs=self._logprobs)
        yield self._event("content_part.done", content_index=0, part=_output_text(text, self._logprobs))
        yield self._item_event("done", self.item(status))

    def item(self, status: Status) -> Item:
        """The message."""
        return self._message([_output_text(self.text, self._logprobs)], status)

    def _message(self, content: list[Item], status: Status) -> Item:
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}


class OpenReasoning(_Base):
    """The model's thinking, shown as content or, to clients that ask for one, as a summary.

    Args:
        numbers: of the stream.
        output_index: the item's place.
        as_summary: show it as a summary, which is the thinking itself, unabridged.
        sealed: give it as an opaque string too.
    """

    def __init__(self, numbers: Numbers, output_index: int, *, as_summary: bool, sealed: bool) -> None:
        super().__init__(numbers, output_index, "rs")
        self._as_summary = as_summary
        self._sealed = sealed

    def begin(self) -> Iterator[Event]:
        """The item without content, and its only part."""
        yield self._item_event("added", {"id": self.id, "type": "reasoning", "status": "in_progress", "summary": []})
        yield self._part("added", "")

    def add(self, text: str, logprobs: list[Any]) -> Event:
        """A piece of thinking."""
        self._pieces.append(text)
        return self._piece("delta", delta=text)

    def end(self, status: Status) -> Iterator[Event]:
        """Text, part and item, whole."""
        text = self.text
        yield self._piece("done", text=text)
        yield self._part("done", text)
        yield self._item_event("done", self.item(status))

    def item(self, status: Status) -> Item:
        """The reasoning item."""
        text = self.text
        item: Item = {"id": self.id, "type": "reasoning", "status": status, "summary": []}
        if self._as_summary:
            item["summary"] = [{"type": "summary_text", "text": text}]
        else:
            item["content"] = [{"type": "reasoning_text", "text": text}]
        if self._sealed:
            item["encrypted_content"] = seal("reasoning", text)
        return item

    def _part(self, kind: str, text: str) -> Event:
        if self._as_summary:
            part = {"type": "summary_text", "text": text}
            return self._event(f"reasoning_summary_part.{kind}", summary_index=0, part=part)
        return self._event(f"content_part.{kind}", content_index=0, part={"type": "reasoning_text", "text": text})

    def _piece(self, kind: str, **text: str) -> Event:
        if self._as_summary:
            return self._event(f"reasoning_summary_text.{kind}", summary_index=0, **text)
        return self._event(f"reasoning_text.{kind}", content_index=0, **text)


class OpenCall(_Base):
    """A call of one of the client's tools.

    Args:
        numbers: of the stream.
        output_index: the item's place.
        call_id: what its output will name.
        name: as the client knows it.
        namespace: of the tool.
        custom: the tool takes free text.
    """

    def __init__(
        self, numbers: Numbers, output_index: int, *, call_id: str, name: str, namespace: str | None, custom: bool
    ) -> None:
        super().__init__(numbers, output_index, "ctc" if custom else "fc")
        self._custom = custom
        self._head: Item = {
            "id": self.id,
            "type": "custom_tool_call" if custom else "function_call",
            "call_id": call_id,
            "name": name,
        }
        if namespace is not None:
            self._head["namespace"] = namespace

    def begin(self) -> Iterator[Event]:
        """The item without its input."""
        yield self._item_event("added", self.item("in_progress"))

    def add(self, text: str, logprobs: list[Any]) -> Event:
        """A piece of the arguments or of the free text."""
        self._pieces.append(text)
        return self._event(f"{self._noun}.delta", delta=text)

    def end(self, status: Status) -> Iterator[Event]:
        """Input and item, whole."""
        if self._custom:
            yield self._event(f"{self._noun}.done", input=self.text)
        else:
            yield self._event(f"{self._noun}.done", name=self._head["name"], arguments=self.text)
        yield self._item_event("done", self.item(status))

    def item(self, status: Status) -> Item:
        """The call."""
        return self._head | {"input" if self._custom else "arguments": self.text, "status": status}

    @property
    def _noun(self) -> str:
        return "custom_tool_call_input" if self._custom else "function_call_arguments"


def _output_text(text: str, logprobs: list[Any]) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
