"""The one shape of what OpenAI lets clients write in four ways: texts, token ids, or lists of either."""

from typing import Annotated, Any

from pydantic import Field, PlainValidator

from .body import invalid


def _check(value: Any) -> list[str | list[int]]:
    """`value` as a list of texts and token id lists.

    Raises:
        PydanticCustomError: it is none of string, array of strings, array of token ids, array of arrays of token ids.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise invalid("invalid_type", "send a string, an array of strings, token ids, or an array of token id arrays.")
    if not value:
        raise invalid("empty_array", "the array is empty. Send at least one text or token id.")
    if _is_token_ids(value):
        return [value]
    for index, item in enumerate(value):
        if isinstance(item, str):
            continue
        if not isinstance(item, list) or (item and not _is_token_ids(item)):
            raise invalid("invalid_type", "send a string or an array of token ids (integers from 0).", str(index))
        if not item:
            raise invalid("empty_array", "the array is empty. Send at least one token id.", str(index))
    return value


def _is_token_ids(value: list[Any]) -> bool:
    return all(type(item) is int and 0 <= item < 2**31 for item in value)


_TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
_InputsForm = str | _TokenIds | Annotated[list[str | _TokenIds], Field(min_length=1)]
# The check is complete, and pydantic's own would walk through every token id once more.
Inputs = Annotated[list[str | list[int]], PlainValidator(_check, json_schema_input_type=_InputsForm)]
"""Texts and token ids; a single text or list of ids becomes a list of one."""
