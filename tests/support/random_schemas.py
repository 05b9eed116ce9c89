"""Makes random JSON Schemas of the keywords that outputs are held to, small enough for short outputs."""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_PATTERNS = ["^[a-c]{1,3}$", "^x", "[0-9]$", "^(red|green)$", "^\\d{2}-\\w+$", "a.b"]
_FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "ipv6", "email", "hostname", "duration", "uri"]
_NAMES = ["a", "b", "name", "id", "kind", "größe", 'quo"te', "with space"]


def random_schema(rng: random.Random, depth: int = 3) -> Schema:
    """A schema of at most `depth` levels. It may match nothing, or have something in it that is refused."""
    makers: list[Callable[[random.Random, int], Schema]] = [_string, _number, _integer, _constant, _enum, _simple]
    if depth > 0:
        makers += [_object, _object, _object, _array, _array, _any_of, _all_of, _reference, _one_of, _untyped]
    return rng.choice(makers)(rng, depth - 1)


def _string(rng: random.Random, depth: int) -> Schema:
    schema: Schema = {"type": "string"}
    match rng.randrange(5):
        case 0:
            low = rng.randrange(4)
            schema |= {"minLength": low, "maxLength": low + rng.randrange(5)}
        case 1:
            schema["pattern"] = rng.choice(_PATTERNS)
        case 2:
            schema["format"] = rng.choice(_FORMATS)
        case 3:
            schema |= {"pattern": rng.choice(_PATTERNS), "maxLength": 8}
        case _:
            schema["maxLength"] = 6
    return schema


def _number(rng: random.Random, depth: int) -> Schema:
    low = rng.choice([-1.5, 0, 0.25, 10, -100])
    schema: Schema = {"type": "number"}
    match rng.randrange(4):
        case 0:
            schema |= {"minimum": low, "maximum": low + rng.choice([0, 0.5, 7])}
        case 1:
            schema |= {"exclusiveMinimum": low, "exclusiveMaximum": low + rng.choice([0.5, 7])}
        case 2:
            schema |= {"minimum": low, "multipleOf": rng.choice([0.5, 0.25, 2])}
        case _:
            schema["maximum"] = low
    return schema


def _integer(rng: random.Random, depth: int) -> Schema:
    low = rng.choice([-5, 0, 3, 120])
    schema: Schema = {"type": "integer"}
    match rng.randrange(4):
        case 0:
            schema |= {"minimum": low, "maximum": low + rng.randrange(1000)}
        case 1:
            schema |= {"exclusiveMinimum": low, "exclusiveMaximum": low + 2 + rng.randrange(5)}
        case 2:
            schema |= {"multipleOf": rng.choice([3, 7, 10]), "minimum": low}
        case _:
            schema |= {"maximum": 2**63, "minimum": -(2**63)}
    return schema


def _constant(rng: random.Random, depth: int) -> Schema:
    return {"const": _value(rng, 2)}


def _enum(rng: random.Random, depth: int) -> Schema:
    return {"enum": [_value(rng, 1) for _ in range(rng.randrange(1, 5))]}


def _simple(rng: random.Random, depth: int) -> Schema:
    return rng.choice(
        [{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}, {"type": ["string", "boolean"]}]
    )


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(_NAMES, rng.randrange(4))
    schema: Schema = {"type": "object", "properties": {name: random_schema(rng, depth) for name in names}}
    if names and rng.random() < 0.8:
        schema["required"] = rng.sample(names, rng.randrange(len(names) + 1))
    match rng.randrange(6):
        case 0:
            schema["additionalProperties"] = random_schema(rng, depth)
        case 1:
            schema["patternProperties"] = {rng.choice(_PATTERNS): random_schema(rng, depth)}
        case 2:
            schema |= {"maxProperties": len(names) + 1, "minProperties": 1}
        case 3:
            schema["required"] = [*schema.get("required", []), "more"]
        case _:
            schema["additionalProperties"] = False
    return _shuffled(rng, schema)


def _array(rng: random.Random, depth: int) -> Schema:
    schema: Schema = {"type": "array", "maxItems": rng.randrange(4)}
    if rng.random() < 0.4:
        schema["prefixItems"] = [random_schema(rng, depth) for _ in range(rng.randrange(1, 3))]
    if rng.random() < 0.8:
        schema["items"] = rng.choice([False, random_schema(rng, depth), random_schema(rng, depth)])
    if rng.random() < 0.5:
        schema["minItems"] = rng.randrange(schema["maxItems"] + 1)
    return _shuffled(rng, schema)


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [random_schema(rng, depth) for _ in range(rng.randrange(1, 4))]} | _extra(rng, depth)


def _all_of(rng: random.Random, depth: int) -> Schema:
    first = rng.choice([_object, _array, _integer, _string])
    return {"allOf": [first(rng, depth), first(rng, depth)]} | _extra(rng, depth)


def _one_of(rng: random.Random, depth: int) -> Schema:
    options = []
    for tag in rng.sample(["cat", "dog", "cow"], 2):
        option = _object(rng, depth)
        option["properties"]["tag"] = {"const": tag}
        option["required"] = [*option.get("required", []), "tag"]
        options.append(option)
    return {"oneOf": rng.choice([options, [options[0], {"type": "null"}], [_string(rng, 0), options[1]]])}


def _reference(rng: random.Random, depth: int) -> Schema:
    """To a definition of its own, which stands where pointers from the root find it: at the root only."""
    return {"$ref": "#/$defs/" + rng.choice(["leaf", "tree", "pair"])}


def _untyped(rng: random.Random, depth: int) -> Schema:
    schema = rng.choice([_object, _array, _string, _integer])(rng, depth)
    del schema["type"]
    return schema | {"type": rng.choice([["object", "string"], ["array", "integer"], ["string", "integer", "null"]])}


def _extra(rng: random.Random, depth: int) -> Schema:
    """Keywords beside an anyOf or allOf, before or after it."""
    return rng.choice([{}, {}, {"title": "x"}, {"minimum": 2}, {"maxLength": 3}, {"type": ["object", "string"]}])


def with_definitions(schema: Schema, rng: random.Random) -> Schema:
    """The schema with what `_reference` refers to: a leaf, a recursive tree, a pair with a tag."""
    tree = {
        "type": "object",
        "properties": {
            "leaf": {"$ref": "#/$defs/leaf"},
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]},
        },
        "required": ["leaf", "next"],
        "additionalProperties": False,
    }
    pair = {
        "type": "array",
        "prefixItems": [{"$ref": "#/$defs/leaf"}, {"enum": ["p", "q"]}],
        "minItems": 2,
        "items": False,
    }
    return schema | {"$defs": {"leaf": _simple(rng, 0), "tree": tree, "pair": pair}}


def _value(rng: random.Random, depth: int) -> Any:
    kinds = [None, True, False, 0, -7, 2.5, 1e3, "", "text", "é\n", 'q"\\', "/"]
    if depth > 0 and rng.random() < 0.4:
        names = rng.sample(_NAMES, rng.randrange(3))
        return rng.choice([{name: _value(rng, depth - 1) for name in names}, [_value(rng, depth - 1) for _ in names]])
    return rng.choice(kinds)


def _shuffled(rng: random.Random, schema: Schema) -> Schema:
    """Keywords mean the same in any order."""
    items = list(schema.items())
    rng.shuffle(items)
    return dict(items)
