"""Walks through the schemas within a JSON Schema and refuses keywords whose values have the wrong form.

Unknown keywords say nothing in JSON Schema, and are left alone. What is well formed but cannot be enforced is
`json_schema`'s business.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

from penstock.scheduler.errors import RequestError

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

_ONE = frozenset({"additionalItems", "additionalProperties", "items"})
_MANY = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "patternProperties", "properties"})
"""Keywords whose values are a schema, a list and a map of schemas; `items` was a list in older drafts."""


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return _is_number(value) and whole and value >= 0


def _is_positive(value: object) -> TypeGuard[float]:
    return _is_number(value) and value > 0


def _is_schema(value: object) -> bool:
    return isinstance(value, dict | bool)


def _is_type(value: object) -> bool:
    return value in TYPES if isinstance(value, str) else isinstance(value, list) and all(v in TYPES for v in value)


def _is_list_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_map_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_Form = tuple[Callable[[object], bool], str]
_COUNT: _Form = (_is_count, "a whole number of 0 or more")
_BOUND: _Form = (_is_number, "a number")
_OPEN_BOUND: _Form = (lambda value: isinstance(value, bool) or _is_number(value), "a number")
_TEXT: _Form = (_is_text, "a string")
_SCHEMA: _Form = (_is_schema, "a schema, which is an object, true or false")
_SCHEMAS: _Form = (lambda value: bool(value) and _is_list_of(_is_schema)(value), "a list of at least one schema")
_MAP: _Form = (_is_map_of(_is_schema), "an object of schemas")
COUNTS = frozenset({"maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"})
"""Keywords that count something."""
_FORMS: Mapping[str, _Form] = dict.fromkeys(COUNTS, _COUNT) | {
    "$defs": _MAP,
    "$ref": _TEXT,
    "$schema": _TEXT,
    "additionalItems": _SCHEMA,
    "additionalProperties": _SCHEMA,
    "allOf": _SCHEMAS,
    "anyOf": _SCHEMAS,
    "definitions": _MAP,
    "enum": (lambda value: isinstance(value, list) and bool(value), "a list of at least one value"),
    "exclusiveMaximum": _OPEN_BOUND,
    "exclusiveMinimum": _OPEN_BOUND,
    "format": _TEXT,
    "items": (lambda value: _is_schema(value) or _is_list_of(_is_schema)(value), "a schema or a list of schemas"),
    "maximum": _BOUND,
    "minimum": _BOUND,
    "multipleOf": (_is_positive, "a number above 0"),
    "oneOf": _SCHEMAS,
    "pattern": _TEXT,
    "patternProperties": _MAP,
    "prefixItems": _SCHEMAS,
    "properties": _MAP,
    "required": (_is_list_of(_is_text), "a list of names of properties"),
    "type": (_is_type, f"one of {', '.join(TYPES)}, or a list of them"),
}


def walk(root: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, int]]:
    """Every schema object in `root` with its JSON pointer and depth."""
    stack: list[tuple[object, str, int]] = [(root, "", 1)]
    while stack:
        node, path, depth = stack.pop()
        if not isinstance(node, dict):
            continue  # true, false, or what `check_form` refuses
        yield node, path, depth
        for keyword, value in node.items():
            below = f"{path}/{keyword}"
            if keyword in _NAMED and isinstance(value, dict):
                stack += [(child, f"{below}/{name}", depth + 1) for name, child in value.items()]
            elif keyword in _MANY and isinstance(value, list):
                stack += [(child, f"{below}/{index}", depth + 1) for index, child in enumerate(value)]
            elif keyword in _ONE:
                stack.append((value, below, depth + 1))


def check_form(node: Mapping[str, Any], param: str, path: str) -> None:
    """Look at the keywords of one schema.

    Args:
        node: the schema.
        param: dotted path of the request field that errors name.
        path: JSON pointer of the node in that field.

    Raises:
        RequestError: invalid_json_schema, a keyword's value has the wrong form.
    """
    for keyword, value in node.items():
        if (form := _FORMS.get(keyword)) is not None and not form[0](value):
            raise refuse(param, f"{path}/{keyword}", f"{short(value)} is not {form[1]}. Send one.")


def short(value: object) -> str:
    """A value as a message shows it."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def refuse(param: str, path: str, message: str) -> RequestError:
    """The error of a schema."""
    where = f" at '{path[:200]}'" if path else ""
    return RequestError(f"Invalid schema in '{param}'{where}: {message}", code="invalid_json_schema", param=param)
