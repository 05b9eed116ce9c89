"""Input items in the form in which they are stored and listed: all that the model saw of them, nothing else."""

from typing import Any

from ...protocol.responses.items import (
    CustomToolCallOutputItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
)
from ...protocol.responses.parts import OutputPart, TextPart

Json = dict[str, Any]


def stored_item(item: Item) -> Json:
    """One item as JSON, with its id if it has one."""
    stored: Json = item.model_dump(exclude_none=True)
    match item:
        case MessageItem():
            stored["content"] = [_message_part(part, by_model=item.role == "assistant") for part in item.content]
        case FunctionCallOutputItem() | CustomToolCallOutputItem():
            stored["output"] = _output(item.output)
        case ReasoningItem(content=[]):
            del stored["content"]
    return stored


def _message_part(part: TextPart, *, by_model: bool) -> Json:
    if part.type == "refusal":
        return {"type": "refusal", "refusal": part.text}
    return {"type": "output_text" if by_model else "input_text", "text": part.text}


def _output(parts: list[OutputPart]) -> str | list[Json]:
    if len(parts) == 1 and parts[0].type == "text":
        return parts[0].text
    return [{"type": "input_text", "text": part.text} for part in parts]
