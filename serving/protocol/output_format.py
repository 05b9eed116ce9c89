"""The request fields that give the output's text a form: OpenAI's, and those of vLLM and llama.cpp."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, StringConstraints, model_validator

from .body import RequestBody, invalid
from .explain import preview
from .other_fields import RESPONSE_FORMAT, STRUCTURED_OUTPUTS

MAX_FORMAT_LENGTH = 256 * 1024
"""Characters of one expression or grammar."""


def _as_bool(value: Any) -> Any:
    """LM Studio's documentation sends `"strict": "true"`."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _check_schema(value: Any) -> Any:
    if not isinstance(value, dict | bool):
        raise invalid("invalid_type", f"expected a JSON Schema, which is an object, but got {preview(value)}.")
    return value


def _check_schema_or_text(value: Any) -> Any:
    return value if isinstance(value, str) else _check_schema(value)


FormatText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_FORMAT_LENGTH)]
Choices = Annotated[list[FormatText], Field(min_length=1, max_length=1024)]
Schema = Annotated[Any, PlainValidator(_check_schema, json_schema_input_type=dict[str, Any] | bool)]
SchemaOrText = Annotated[Any, PlainValidator(_check_schema_or_text, json_schema_input_type=dict[str, Any] | bool | str)]
"""Or the schema as JSON text, which vLLM takes."""
Strict = Annotated[bool, BeforeValidator(_as_bool, json_schema_input_type=bool | Literal["true", "false"])]
FormatName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class JsonSchemaFormat(RequestBody):
    """`json_schema` of a `response_format`."""

    name: FormatName = "response"
    description: str = ""
    schema_: Schema = Field(default_factory=dict, alias="schema")
    strict: Strict = True
    """Read for its type only: the schema is enforced either way."""


class ResponseFormat(RequestBody):
    """OpenAI's `response_format`."""

    other_fields = RESPONSE_FORMAT

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: Schema | None = Field(default=None, alias="schema")
    """For json_object, as llama.cpp has it."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            if self.json_schema is None:
                raise invalid("missing_required_parameter", "type json_schema needs it.", "json_schema")
            raise invalid("invalid_value", f"it does not go with type {self.type}. Leave one out.", "json_schema")
        if self.schema_ is not None and self.type != "json_object":
            raise invalid("invalid_value", f"it does not go with type {self.type}. Leave it out.", "schema")
        return self


class StructuredOutputs(RequestBody):
    """vLLM's `structured_outputs`."""

    other_fields = STRUCTURED_OUTPUTS

    json_: SchemaOrText | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: FormatText | None = None
    choice: Choices | None = None
    grammar: FormatText | None = None


class OutputFormatFields(RequestBody):
    """At most one of these says what the text must be."""

    response_format: ResponseFormat | None = None
    json_schema: Schema | None = None
    """llama.cpp's."""
    regex: FormatText | None = None
    grammar: FormatText | None = None
    """In Lark, or llama.cpp's GBNF."""
    choice: Choices | None = None
    guided_json: SchemaOrText | None = None
    guided_regex: FormatText | None = None
    guided_grammar: FormatText | None = None
    guided_choice: Choices | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _at_most_one(self) -> "OutputFormatFields":
        given = [name for name in OutputFormatFields.model_fields if getattr(self, name) is not None]
        if self.response_format is not None and self.response_format.type == "text":
            given.remove("response_format")
        if len(given) > 1:
            raise invalid("invalid_value", f"it excludes '{given[0]}'. Leave one out.", given[1])
        if self.structured_outputs is not None:
            values = [getattr(self.structured_outputs, name) for name in StructuredOutputs.model_fields]
            if sum(value is not None and value is not False for value in values) != 1:
                one = "send exactly one of json, json_object, regex, choice and grammar."
                raise invalid("invalid_value", one, "structured_outputs")
        return self
