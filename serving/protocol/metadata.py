"""Metadata: the labels that clients put on what is stored for them."""

from typing import Annotated, Any

from pydantic import Field, PlainValidator

from .body import invalid
from .explain import preview

MAX_PAIRS = 16
MAX_KEY_LENGTH = 64
MAX_VALUE_LENGTH = 512


def _check(value: Any) -> dict[str, str]:
    """`value`, an object within OpenAI's limits.

    Raises:
        PydanticCustomError: it is not.
    """
    if not isinstance(value, dict):
        raise invalid("invalid_type", f"expected an object of strings, but got {preview(value)}.")
    if len(value) > MAX_PAIRS:
        raise invalid("object_above_max_properties", f"{len(value)} pairs are too many. Send at most {MAX_PAIRS}.")
    for key, text in value.items():
        if len(key) > MAX_KEY_LENGTH:
            raise invalid(
                "invalid_value", f"the key {preview(key)} is too long. Send at most {MAX_KEY_LENGTH} characters."
            )
        if not isinstance(text, str):
            raise invalid("invalid_type", f"expected a string, but got {preview(text)}.", key)
        if len(text) > MAX_VALUE_LENGTH:
            raise invalid(
                "string_above_max_length",
                f"a value of {len(text)} characters is too long. Send at most {MAX_VALUE_LENGTH}.",
                key,
            )
    return value


_Key = Annotated[str, Field(max_length=MAX_KEY_LENGTH)]
_Value = Annotated[str, Field(max_length=MAX_VALUE_LENGTH)]
MetadataForm = Annotated[dict[_Key, _Value], Field(max_length=MAX_PAIRS)]
Metadata = Annotated[dict[str, str], PlainValidator(_check, json_schema_input_type=MetadataForm)]
"""At most 16 pairs of short strings."""
