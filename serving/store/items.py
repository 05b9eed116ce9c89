"""Gives the items of responses and conversations what clients may leave out and readers rely on: type, id, status."""

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from .objects import Json

_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
    "compaction": "cmp",
}
_WITH_STATUS = _PREFIXES.keys() - {"reasoning", "compaction"}


def new_item_id(kind: str) -> str:
    """An unused id for an item of a type, such as `msg_…`."""
    return f"{_PREFIXES.get(kind, 'item')}_{uuid.uuid4().hex}"


def complete_items(items: Iterable[Mapping[str, Any]]) -> list[Json]:
    """Input items as they are stored and listed; complete ones stay as they are."""
    return [complete_item(item) for item in items]


def complete_item(item: Mapping[str, Any]) -> Json:
    """One item with its type, id and status, and with its content as a list of parts."""
    kind = item.get("type") or "message"
    complete: Json = {name: value for name, value in item.items() if value is not None}
    complete |= {"type": kind, "id": item.get("id") or new_item_id(kind)}
    if kind in _WITH_STATUS:
        complete.setdefault("status", "completed")
    if kind == "message":
        complete["content"] = _parts(complete.get("content") or [], by_model=complete.get("role") == "assistant")
    elif kind == "reasoning":
        complete.setdefault("summary", [])
    return complete


def _parts(content: str | list[Json], *, by_model: bool) -> list[Json]:
    if isinstance(content, str):
        content = [{"type": "output_text" if by_model else "input_text", "text": content}]
    defaults: dict[str, Json] = {
        "output_text": {"annotations": [], "logprobs": []},
        "input_image": {"detail": "auto"},
    }
    return [defaults.get(part["type"], {}) | part for part in content]
