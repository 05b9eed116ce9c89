"""The JSON Schema of a request object: what it accepts, described by the strings that stand under its fields."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from .body import RequestBody

JsonSchema = dict[str, Any]


def complete(schema: JsonSchema, kind: "type[RequestBody]") -> None:
    """Add to a request object's schema what pydantic does not know of it.

    null means absent, so every field that may be absent may be null, even one that nobody knows. Tolerated fields are
    described with the values that they may have; refused ones are left out, as unknown ones are.

    Args:
        schema: what pydantic says; changed in place.
        kind: the request object.
    """
    properties: JsonSchema = schema.setdefault("properties", {})
    required = set(schema.get("required", ()))
    for name, own in properties.items():
        own.pop("title", None)  # the name once more
        own = _with_any_of(own)
        properties[name] = own if name in required else _or_null(own)
    for name, description in field_descriptions(kind).items():
        if name in properties:
            properties[name].setdefault("description", description)
    for name, fate in kind.other_fields.items():
        if name not in properties and (tolerated := fate.schema()) is not None:
            properties[name] = tolerated
    schema["properties"] = dict(sorted(properties.items(), key=lambda item: item[0] not in required))
    schema["additionalProperties"] = {"type": "null"}


def accept_refusals(schema: JsonSchema) -> None:
    """Let a text part of this schema be `{"type": "refusal", "refusal": ...}` too; changes it in place."""
    text = dict(schema)
    properties: JsonSchema = text["properties"]
    kinds = [kind for kind in properties["type"]["enum"] if kind != "refusal"]
    others = {name: own for name, own in properties.items() if name not in ("type", "text")}
    refusal = {"type": {"const": "refusal"}, "refusal": {"type": "string"}} | others
    schema.clear()
    schema["anyOf"] = [
        text | {"properties": properties | {"type": {"enum": kinds}}},
        {"type": "object", "properties": refusal, "required": ["type", "refusal"]}
        | {"additionalProperties": {"type": "null"}},
    ]


def _with_any_of(schema: Any) -> Any:
    """The schema with anyOf for oneOf: which alternative an object is, is told by more than its being the only one."""
    if isinstance(schema, list):
        return [_with_any_of(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: _with_any_of(value) for key, value in schema.items() if key != "discriminator"}
    if "oneOf" in changed:
        changed["anyOf"] = changed.pop("oneOf")
    return changed


def _or_null(schema: JsonSchema) -> JsonSchema:
    notes = {key: value for key in ("description", "default") if (value := schema.get(key)) is not None}
    bare = {key: value for key, value in schema.items() if key not in ("description", "default")}
    if not bare or {"type": "null"} in bare.get("anyOf", []):
        return bare | notes
    alternatives = bare["anyOf"] if set(bare) == {"anyOf"} else [bare]
    return {"anyOf": [*alternatives, {"type": "null"}]} | notes


def field_descriptions(kind: type[BaseModel]) -> dict[str, str]:
    """The strings that stand under the fields of a class and of its bases, by the fields' names for clients."""
    written: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            written |= dict(_strings_under_fields(base))
    return {field.alias or name: written[name] for name, field in kind.model_fields.items() if name in written}


def _strings_under_fields(kind: type) -> Iterator[tuple[str, str]]:
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except OSError:  # no source where Python was asked to run from compiled files alone
        return
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, inspect.cleandoc(text).replace("\n", " ")
