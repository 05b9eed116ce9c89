"""The items of a Responses request's input, in every form in which clients send and replay them."""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    FailFast,
    Field,
    GetJsonSchemaHandler,
    Tag,
    TypeAdapter,
    model_validator,
)
from pydantic_core import CoreSchema

from ..body import RequestBody, invalid
from ..counts import MAX_MESSAGES, MAX_PARTS
from ..explain import preview
from .fates import ITEM
from .parts import Content, Output, TextPart
from .tools import Tools

MAX_CALL_ID_LENGTH = 256
MAX_OPAQUE_LENGTH = 20 * 2**20
"""OpenAI's limit on encrypted content."""

CallId = Annotated[str, Field(min_length=1, max_length=MAX_CALL_ID_LENGTH)]
ItemId = Annotated[str, Field(min_length=1, max_length=256)]
Opaque = Annotated[str, Field(max_length=MAX_OPAQUE_LENGTH)]


class InputItem(RequestBody):
    """What all items have in common."""

    other_fields = ITEM

    id: ItemId | None = None


class MessageItem(InputItem):
    """A message; clients leave the type out."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content = Field(default_factory=list)

    @model_validator(mode="after")
    def _has_content(self) -> "MessageItem":
        if not self.content and self.role != "assistant":
            raise invalid("missing_required_parameter", f"a {self.role} message needs content. Send text.", "content")
        return self


class FunctionCallItem(InputItem):
    """An earlier call of a function."""

    type: Literal["function_call"]
    call_id: CallId
    name: str = Field(min_length=1)
    namespace: str | None = None
    arguments: str


class FunctionCallOutputItem(InputItem):
    """What a function gave back."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Output


class CustomToolCallItem(InputItem):
    """An earlier call of a custom tool."""

    type: Literal["custom_tool_call"]
    call_id: CallId
    name: str = Field(min_length=1)
    namespace: str | None = None
    input: str


class CustomToolCallOutputItem(InputItem):
    """What a custom tool gave back."""

    type: Literal["custom_tool_call_output"]
    call_id: CallId
    output: Output


class ReasoningItem(InputItem):
    """The model's earlier thinking."""

    type: Literal["reasoning"]
    summary: list[TextPart] = Field(default_factory=list, max_length=MAX_PARTS)
    content: list[TextPart] = Field(default_factory=list, max_length=MAX_PARTS)
    encrypted_content: Opaque | None = None


class ItemReference(InputItem):
    """An item of a stored answer, by its id."""

    type: Literal["item_reference"] = "item_reference"
    id: ItemId


class AdditionalToolsItem(InputItem):
    """More tools, in the input."""

    type: Literal["additional_tools"]
    role: str = "developer"
    tools: Tools


class CompactionItem(InputItem):
    """A conversation until here, as an earlier compaction left it."""

    type: Literal["compaction"]
    encrypted_content: Opaque


class CompactionTrigger(InputItem):
    """Asks for a compaction of everything before it, as the answer's only item."""

    type: Literal["compaction_trigger"]


class UnknownItem(RequestBody):
    """An item of no known type, always refused."""

    type: Literal["(unknown)"]

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Nothing is valid."""
        return {"not": {}}

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            raise invalid("invalid_type", f"expected an object, but got {preview(raw)}.")
        raise invalid(
            "invalid_value",
            f"items of type {preview(raw.get('type'))} are not understood here. Known types: {', '.join(_KNOWN)}.",
            "type",
        )


_KNOWN = (
    "message",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "reasoning",
    "item_reference",
    "additional_tools",
    "compaction",
    "compaction_trigger",
)


def _item_tag(raw: Any) -> str:
    """The union's tag; errors leave it out of their paths since it is in parentheses."""
    if isinstance(raw, InputItem):
        return f"({getattr(raw, 'type', '')})"
    if not isinstance(raw, dict):
        return "(unknown)"
    kind = raw.get("type")
    if kind is None:  # clients leave it out where the other fields tell
        kind = "item_reference" if "id" in raw and "role" not in raw else "message"
    return f"({kind})" if kind in _KNOWN else "(unknown)"


Item = Annotated[
    Annotated[MessageItem, Tag("(message)")]
    | Annotated[FunctionCallItem, Tag("(function_call)")]
    | Annotated[FunctionCallOutputItem, Tag("(function_call_output)")]
    | Annotated[CustomToolCallItem, Tag("(custom_tool_call)")]
    | Annotated[CustomToolCallOutputItem, Tag("(custom_tool_call_output)")]
    | Annotated[ReasoningItem, Tag("(reasoning)")]
    | Annotated[ItemReference, Tag("(item_reference)")]
    | Annotated[AdditionalToolsItem, Tag("(additional_tools)")]
    | Annotated[CompactionItem, Tag("(compaction)")]
    | Annotated[CompactionTrigger, Tag("(compaction_trigger)")]
    | Annotated[UnknownItem, Tag("(unknown)")],
    Discriminator(_item_tag),
]


def _as_items(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": value}]}]
    return value


_Items = Annotated[list[Item], Field(max_length=MAX_MESSAGES)]
Items = Annotated[_Items, FailFast(), BeforeValidator(_as_items, json_schema_input_type=str | _Items)]
"""A string becomes one user message."""

ITEMS: TypeAdapter[list[Item]] = TypeAdapter(Items)
"""Reads stored items back."""
