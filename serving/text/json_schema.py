"""Prepares a client's JSON Schema for the grammar compiler: refuses what would not be enforced, bounds the rest.

The compiler enforces most of JSON Schema and ignores, or takes for something else, a little of it. Whatever an output
could break without anybody noticing is refused here by name; a keyword that JSON Schema does not know says nothing.
"""

import json
import re
from collections.abc import Mapping
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from .schema_form import COUNTS, check_form, refuse, short, walk

MAX_SCHEMA_BYTES = 256 * 1024
MAX_SCHEMA_DEPTH = 64
"""Of schemas within schemas."""
MAX_SCHEMA_NODES = 10_000
"""Schemas within a schema, itself included."""

FORMATS = frozenset(
    {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri", "uuid"}
)
"""Values of `format` that are enforced on strings."""

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

_IN_PLACE = frozenset({"$ref", "allOf", "anyOf", "const", "enum", "oneOf"})
"""Keywords that say more about the same value."""

_COMPILER_OPTIONS = {
    # A space, or a new line and its indentation: with any whitespace a model may write nothing else for ever.
    "whitespace_pattern": r"[ ]|\n[ \t]{0,16}",
    # No \u: a key written with it would be taken for another than the one it is.
    "json_allowed_escapes": 'nrbtf\\"',
}
_MAX_EXACT = 2**53
"""The compiler knows numbers as floats, whose integers have gaps from here on."""
_NEXT = 1e-6
"""Taken for the distance between two neighbouring numbers."""
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f]")
"""Characters that JSON writes with \\u only; the compiler drops them where it may not."""
_CONTROL_IN_PATTERN = re.compile(rf"{_CONTROL.pattern}|\\(?:x[01]|u00[01]|0|c|u\{{0*1?[0-9a-fA-F]\}})")
_CLASS = re.compile(r"\[(?:\\.|[^\]\\])*\]", re.DOTALL)
"""In a class of a pattern they do no harm."""


def compilable(schema: object, param: str) -> dict[str, Any]:
    """`schema` with the compiler's options in it, fit for `%json` or a grammar's `json_schema`.

    Args:
        schema: as it came from the client.
        param: dotted path of the request field that errors name.

    Raises:
        RequestError: the schema is none, too large, or has a keyword that cannot be enforced.
    """
    if schema is False:
        raise refuse(param, "", "false matches nothing. Send an object.")
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise refuse(param, "", f"it is {_kind(schema)}, but a JSON Schema is an object. Send one.")
    try:
        text = json.dumps(schema)
    except RecursionError:
        raise refuse(param, "", "it is nested too deeply. Send a flatter one.") from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise refuse(param, "", f"it has {len(text)} bytes, the limit is {MAX_SCHEMA_BYTES}. Send a smaller one.")
    root: dict[str, Any] = json.loads(text)  # a copy of our own
    one_of_is_any_of = True
    for num_nodes, (node, path, depth) in enumerate(walk(root), start=1):
        if num_nodes > MAX_SCHEMA_NODES:
            raise refuse(param, "", f"it has more than {MAX_SCHEMA_NODES} schemas in it. Send a smaller one.")
        if depth > MAX_SCHEMA_DEPTH:
            raise refuse(param, path, f"schemas are nested deeper than {MAX_SCHEMA_DEPTH}. Use $ref, or nest less.")
        check_form(node, param, path)
        _check_node(node, root, param, path)
        _tighten_bounds(node, param, path)
        if isinstance(node.get("oneOf"), list):
            one_of_is_any_of &= _exclude_each_other(node["oneOf"], root)
    return {"x-guidance": _COMPILER_OPTIONS | {"coerce_one_of": one_of_is_any_of}, **root}


def _check_node(node: dict[str, Any], root: dict[str, Any], param: str, path: str) -> None:
    for keyword in node.keys() & _REFUSED:
        if keyword == "uniqueItems" and node[keyword] is False:
            continue
        raise refuse(param, path, f"the keyword '{keyword}' cannot be enforced. Leave it out.")
    if "format" in node and _may_be_string(node) and node["format"] not in FORMATS:
        known = ", ".join(sorted(FORMATS - {"unknown"}))
        raise refuse(param, path, f"the format {short(node['format'])} is not known. Send one of {known}.")
    minimum = node.get("minProperties")
    if isinstance(minimum, int | float) and minimum > max(1, _num_required(node)):
        # The compiler counts a key as often as it is written, and one that is not in `properties` may come twice.
        raise refuse(
            param,
            path,
            f"minProperties {minimum} cannot be enforced beyond 1 and the number of required properties. Lower it.",
        )
    if "additionalItems" in node and isinstance(node.get("items"), list) and node.keys() & _IN_PLACE:
        # The compiler loses it if it comes after such a keyword.
        reason = "additionalItems cannot be enforced beside keywords such as anyOf. Use prefixItems and items."
        raise refuse(param, path, reason)
    constants = [node.get("const"), node.get("enum"), node.get("required"), _keys(node.get("properties"))]
    _check_constants(constants, param, path)
    for pattern in (node.get("pattern"), *_keys(node.get("patternProperties"))):
        if isinstance(pattern, str) and _CONTROL_IN_PATTERN.search(_CLASS.sub("", pattern)):
            raise refuse(param, path, f"the control character in {short(pattern)} cannot be written. Leave it out.")
    if "$ref" in node and _target(node["$ref"], root) is None:
        raise refuse(param, path, f"the $ref {short(node['$ref'])} {_why_no_target(node['$ref'])}")


def _why_no_target(reference: object) -> str:
    if not isinstance(reference, str) or not reference.startswith("#"):
        return "leads out of the schema. Send one that begins with '#', such as \"#/$defs/name\"."
    return "leads nowhere. Define what it names."


def _target(reference: object, root: dict[str, Any]) -> object | None:
    """What a $ref names; True, any value, if only the compiler can find it; None: there is no such place."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    first, *parts = unquote(reference[1:]).split("/")
    if first:
        return True  # the name of an $anchor
    target: object = root
    for part in parts:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, dict) and key in target:
            target = target[key]
        elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
            target = target[int(key)]
        else:
            return None
    return target


def _tighten_bounds(node: dict[str, Any], param: str, path: str) -> None:
    """Draw bounds in to those that the compiler knows exactly: fewer outputs are then possible, and none is wrong."""
    for keyword, sign in (("minimum", -1), ("exclusiveMinimum", -1), ("maximum", 1), ("exclusiveMaximum", 1)):
        bound = node.get(keyword)
        if not isinstance(bound, int | float) or isinstance(bound, bool):
            continue
        if abs(bound) > _MAX_EXACT:
            if bound * sign < 0:
                raise refuse(param, path, f"the {keyword} {short(bound)} leaves only numbers beyond {_MAX_EXACT}.")
            node[keyword] = sign * _MAX_EXACT
        elif keyword.startswith("exclusive") and bound == int(bound) and node.get("type") != "integer":
            # Next to a bound less than 1 away, the compiler takes a whole number for included.
            node[keyword] = bound - sign * _NEXT
    for keyword in COUNTS & node.keys():
        node[keyword] = int(node[keyword])  # 2.0 is a whole number, but not to the compiler


def _check_constants(values: list[Any], param: str, path: str) -> None:
    """Refuse what the compiler would take for something else, at any depth of the values."""
    stack = list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            stack += value
        elif type(value) is int and abs(value) > _MAX_EXACT:
            raise refuse(param, path, f"the whole number {short(value)} is beyond {_MAX_EXACT}. Send it as a string.")
        elif isinstance(value, str) and _CONTROL.search(value):
            raise refuse(param, path, f"the control character in {short(value)} cannot be written. Leave it out.")


def _exclude_each_other(options: list[Any], root: dict[str, Any]) -> bool:
    """Whether no value can match two of the schemas, as far as their types and the tags of objects show.

    `oneOf` is then `anyOf`, which is all that the compiler can do with schemas behind a $ref.
    """
    resolved = [_resolve(option, root) for option in options]
    known = [(_kinds(option), _tags(option, root)) for option in resolved]
    for (kinds, tags), (other_kinds, other_tags) in combinations(known, 2):
        if kinds.isdisjoint(other_kinds):
            continue
        both_objects = kinds == other_kinds == {"object"}
        if not both_objects or not any(tags[name].isdisjoint(other_tags[name]) for name in tags.keys() & other_tags):
            return False
    return True


def _resolve(schema: object, root: dict[str, Any]) -> dict[str, Any]:
    """The schema behind a chain of $refs; one that says nothing if the chain has no end or other keywords in it."""
    for _ in range(8):
        if not isinstance(schema, dict):
            return {}
        if "$ref" not in schema:
            return schema
        schema = _target(schema["$ref"], root)
    return {}


def _kinds(schema: dict[str, Any]) -> set[str]:
    kinds = schema.get("type", ["null", "boolean", "number", "string", "array", "object"])
    names = {kinds} if isinstance(kinds, str) else {kind for kind in kinds if isinstance(kind, str)}
    return {"number" if name == "integer" else name for name in names}


def _tags(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, set[str]]:
    """The texts that required properties can have, of those that can have but a few."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return {}
    tags = {}
    for name in required:
        tag = _resolve(properties.get(name), root) if isinstance(name, str) else {}
        values = [tag["const"]] if "const" in tag else tag.get("enum")
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            tags[name] = set(values)
    return tags


def _may_be_string(node: dict[str, Any]) -> bool:
    """Whether `format` speaks of anything: it says nothing about numbers."""
    kinds = node.get("type", "string")
    return kinds == "string" or (isinstance(kinds, list) and "string" in kinds)


def _num_required(node: dict[str, Any]) -> int:
    required = node.get("required")
    return len(set(map(str, required))) if isinstance(required, list) else 0


def _keys(value: object) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _kind(value: object) -> str:
    kinds: Mapping[type, str] = {str: "a string", list: "an array", type(None): "null"}
    return kinds.get(type(value), "a number")
