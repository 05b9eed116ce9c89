"""The piece of a message that holds text, in chats and in Responses; pieces of other kinds are refused by name."""

from typing import Any, ClassVar

from pydantic import GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from .body import RequestBody, invalid
from .description import accept_refusals
from .explain import preview


class TextPartBody(RequestBody):
    """Text, or an earlier refusal, whose text is in `refusal`. A subclass names the other types of its protocol."""

    unreadable: ClassVar[tuple[str, ...]] = ()
    """Types that the protocol has and no model here understands."""

    text: str

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """As `_only_text` reads it."""
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        accept_refusals(schema)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        kind = raw.get("type")
        if kind == "refusal":
            return {**{k: v for k, v in raw.items() if k != "refusal"}, "text": raw.get("refusal")}
        if kind in cls.unreadable:
            raise invalid(
                "unsupported_parameter",
                f"content parts of type {preview(kind)} are not understood by the models here. Send text parts.",
                "type",
            )
        return raw
