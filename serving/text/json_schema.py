"""Prepares a client's JSON Schema for the grammar compiler: refuses what would not be enforced, bounds the rest.

The compiler enforces most of JSON Schema and ignores, or takes for something else, a little of it. Whatever an output
could break without anybody noticing is refused here by name; a keyword that JSON Schema does not know says nothing.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from penstock.scheduler.errors import RequestError

MAX_SCHEMA_BYTES = 256 * 1024
MAX_SCHEMA_DEPTH = 64
"""Of schemas within schemas."""
MAX_SCHEMA_NODES = 10_000
"""Schemas within a schema, itself included."""

FORMATS = frozenset(
    {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri", "uuid"}
)
"""Values of `format` that are enforced on strings."""

_ONE = frozenset({"additionalItems", "additionalProperties", "items"})
_MANY = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "patternProperties", "properties"})
"""Keywords whose values are a schema, a list and a map of schemas; `items` was a list in older drafts."""

_REFUSED = frozenset(
    {
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "disallow",
        "divisibleBy",
        "else",
        "extends",
        "if",
        "maxContains",
        "minContains",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
        "x-guidance",
    }
)
"""Assertions that are not enforced, and the compiler's own options."""

_COMPILER_OPTIONS = {"whitespace_pattern": r"[ ]|\n[ \t]{0,16}"}
"""A space, or a new line and its indentation: with any whitespace a model may write nothing else for ever."""


def compilable(schema: object, param: str) -> dict[str, Any]:
    """`schema` with the compiler's options in it, fit for `%json` or a grammar's `json_schema`.

    Args:
        schema: as it came from the client.
        param: dotted path of the request field that errors name.

    Raises:
        RequestError: the schema is none, too large, or has a keyword that cannot be enforced.
    """
    if schema is False:
        raise _refuse(param, "", "false matches nothing. Send an object.")
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise _refuse(param, "", f"it is {_kind(schema)}, but a JSON Schema is an object. Send one.")
    try:
        size = len(json.dumps(schema))
    except RecursionError:
        raise _refuse(param, "", "it is nested too deeply. Send a flatter one.") from None
    if size > MAX_SCHEMA_BYTES:
        raise _refuse(param, "", f"it has {size} bytes, the limit is {MAX_SCHEMA_BYTES}. Send a smaller one.")
    for num_nodes, (node, path, depth) in enumerate(_walk(schema), start=1):
        if num_nodes > MAX_SCHEMA_NODES:
            raise _refuse(param, "", f"it has more than {MAX_SCHEMA_NODES} schemas in it. Send a smaller one.")
        if depth > MAX_SCHEMA_DEPTH:
            raise _refuse(param, path, f"schemas are nested deeper than {MAX_SCHEMA_DEPTH}. Use $ref, or nest less.")
        _check_node(node, schema, param, path)
    return {"x-guidance": _COMPILER_OPTIONS, **schema}


def _walk(root: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, int]]:
    """Every schema object in `root` with its JSON pointer and depth; what is no schema is left to the compiler."""
    stack: list[tuple[object, str, int]] = [(root, "", 1)]
    while stack:
        node, path, depth = stack.pop()
        if not isinstance(node, dict):
            continue  # true, false, or a mistake that the compiler names
        yield node, path, depth
        for keyword, value in node.items():
            below = f"{path}/{keyword}"
            if keyword in _NAMED and isinstance(value, dict):
                stack += [(child, f"{below}/{name}", depth + 1) for name, child in value.items()]
            elif keyword in _MANY and isinstance(value, list):
                stack += [(child, f"{below}/{index}", depth + 1) for index, child in enumerate(value)]
            elif keyword in _ONE:
                stack.append((value, below, depth + 1))


def _check_node(node: dict[str, Any], root: dict[str, Any], param: str, path: str) -> None:
    for keyword in node.keys() & _REFUSED:
        if keyword == "uniqueItems" and node[keyword] is False:
            continue
        raise _refuse(param, path, f"the keyword '{keyword}' cannot be enforced. Leave it out.")
    if "format" in node and _may_be_string(node) and node["format"] not in FORMATS:
        known = ", ".join(sorted(FORMATS - {"unknown"}))
        raise _refuse(param, path, f"the format {_short(node['format'])} is not known. Send one of {known}.")
    minimum = node.get("minProperties")
    if isinstance(minimum, int | float) and minimum > max(1, _num_required(node)):
        # The compiler counts a key as often as it is written, and one that is not in `properties` may come twice.
        raise _refuse(
            param,
            path,
            f"minProperties {minimum} cannot be enforced beyond 1 and the number of required properties. Lower it.",
        )
    if "$ref" in node:
        _check_reference(node["$ref"], root, param, path)


def _check_reference(reference: object, root: dict[str, Any], param: str, path: str) -> None:
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise _refuse(
            param,
            path,
            f"the $ref {_short(reference)} leads out of the schema. Send one that begins with '#', such as "
            '"#/$defs/name".',
        )
    target: object = root
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if "%" in key:
            return  # percent-encoded: the compiler decodes it
        if isinstance(target, dict) and key in target:
            target = target[key]
        elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
            target = target[int(key)]
        else:
            raise _refuse(param, path, f"the $ref {_short(reference)} leads nowhere. Define what it names.")


def _may_be_string(node: dict[str, Any]) -> bool:
    """Whether `format` speaks of anything: it says nothing about numbers."""
    kinds = node.get("type", "string")
    return kinds == "string" or (isinstance(kinds, list) and "string" in kinds)


def _num_required(node: dict[str, Any]) -> int:
    required = node.get("required")
    return len(set(map(str, required))) if isinstance(required, list) else 0


def _kind(value: object) -> str:
    kinds: Mapping[type, str] = {str: "a string", list: "an array", type(None): "null"}
    return kinds.get(type(value), "a number")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse(param: str, path: str, message: str) -> RequestError:
    where = f" at '{path[:200]}'" if path else ""
    return RequestError(f"Invalid schema in '{param}'{where}: {message}", code="invalid_json_schema", param=param)
