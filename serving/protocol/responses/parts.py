"""The contents of input items: texts, and parts that hold text."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from ..body import RequestBody
from ..counts import MAX_PARTS
from ..text_part import TextPartBody
from .fates import PART


class TextPart(TextPartBody):
    """A piece of a message: text, or an earlier refusal."""

    other_fields = PART
    unreadable = ("input_image", "input_file", "input_audio", "image_url", "file", "computer_screenshot")

    type: Literal["input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"]


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


_Content = Annotated[list[TextPart], Field(max_length=MAX_PARTS)]
_Output = Annotated[list[OutputPart], Field(max_length=MAX_PARTS)]
Content = Annotated[_Content, FailFast(), BeforeValidator(_as_list, json_schema_input_type=str | _Content)]
"""A string becomes one part."""
Output = Annotated[_Output, FailFast(), BeforeValidator(_as_list, json_schema_input_type=str | _Output)]


def text_of(parts: "list[TextPart] | list[OutputPart]") -> str:
    """The parts as one text, each on lines of its own."""
    return "\n".join(part.text for part in parts)
