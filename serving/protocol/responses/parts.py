"""The contents of input items: texts, and parts that hold text."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from ..body import RequestBody, invalid
from ..description import accept_refusals
from ..explain import preview
from .fates import PART

_UNREADABLE = ("input_image", "input_file", "input_audio", "image_url", "file", "computer_screenshot")


class TextPart(RequestBody):
    """A piece of a message: text, or an earlier refusal."""

    other_fields = PART

    type: Literal["input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"]
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
        if kind in _UNREADABLE:
            raise invalid(
                "unsupported_parameter",
                f"content parts of type {preview(kind)} are not understood by the models here. Send text parts.",
                "type",
            )
        return raw


class OutputPart(RequestBody):
    """A piece of what a tool gave back: text, or something that text models can only be told about."""

    other_fields = PART

    type: Literal["input_text", "output_text", "text", "input_image", "input_file"]
    text: str = ""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """As `_describe` reads it."""
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        schema["additionalProperties"] = True
        return schema

    @model_validator(mode="before")
    @classmethod
    def _describe(cls, raw: Any) -> Any:
        """An agent that looked at an image must be able to go on: the model reads that there was one."""
        if not isinstance(raw, dict) or raw.get("type") not in ("input_image", "input_file"):
            return raw
        noun = "an image" if raw["type"] == "input_image" else "a file"
        return {"type": raw["type"], "text": f"[{noun}, which this model cannot read]"}


def _as_list(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Content = Annotated[list[TextPart], FailFast(), BeforeValidator(_as_list, json_schema_input_type=str | list[TextPart])]
"""A string becomes one part."""
Output = Annotated[
    list[OutputPart], FailFast(), BeforeValidator(_as_list, json_schema_input_type=str | list[OutputPart])
]


def text_of(parts: "list[TextPart] | list[OutputPart]") -> str:
    """The parts as one text, each on lines of its own."""
    return "\n".join(part.text for part in parts)
