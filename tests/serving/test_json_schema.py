"""Which schemas are refused before any compiler sees them."""

import pytest

from penstock.scheduler.errors import RequestError
from penstock.serving.text import json_schema
from penstock.serving.text.json_schema import compilable


def refusal(schema):
    with pytest.raises(RequestError) as caught:
        compilable(schema, "response_format")
    assert caught.value.code == "invalid_json_schema"
    assert caught.value.param == "response_format"
    return caught.value.message


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "object", "properties": {"not": {"type": "string"}, "if": True}, "required": ["not"]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#"}}}},
        {"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"type": "null"}}},
        {"$ref": "#named", "$defs": {"x": {"$anchor": "named"}}},
        {"type": "integer", "format": "int32"},
        {"type": "string", "format": "date-time"},
        {"uniqueItems": False},
        {"const": {"not": 1}},
        {"title": "T", "discriminator": {"propertyName": "kind"}},
        {"minProperties": 2, "required": ["a", "b"]},
        {"items": [{}], "additionalItems": False},
        {"pattern": "^[^\\x00-\\x1f]+$"},
        {"const": "a\n\t", "enum": [2**53]},
        {"type": "integer", "exclusiveMinimum": 0},
        {"maxLength": 2, "exclusiveMaximum": True, "type": ["string", "null"], "unknown keyword": {"type": 3}},
    ],
)
def test_what_can_be_enforced_passes_whole(schema):
    passed = compilable(schema, "p")
    assert passed.pop("x-guidance")["whitespace_pattern"]
    assert passed == ({} if schema is True else schema)


@pytest.mark.parametrize("keyword", ["not", "if", "dependentRequired", "uniqueItems", "contains", "propertyNames"])
def test_unenforced_keywords_are_named_with_their_place(keyword):
    message = refusal({"anyOf": [{}, {"items": {keyword: {"x": 1}}}]})
    assert f"'{keyword}'" in message
    assert "'/anyOf/1/items'" in message


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (False, "matches nothing"),
        ("text", "a string"),
        ([], "an array"),
        ({"x-guidance": {"lenient": True}}, "x-guidance"),
        ({"format": "telephone"}, "telephone"),
        ({"type": ["null", "string"], "format": "x"}, "date-time"),
        ({"$ref": "https://example.com/a"}, "leads out"),
        ({"$ref": "#/$defs/a"}, "leads nowhere"),
        ({"minProperties": 2, "required": ["a"]}, "minProperties 2"),
        ({"anyOf": [{}], "items": [{}], "additionalItems": False}, "additionalItems"),
        ({"enum": [1, {"a": [2**53 + 1]}]}, "9007199254740993"),
        ({"const": "a\u0001"}, "control character"),
        ({"properties": {"a\u0000": {}}}, "control character"),
        ({"pattern": "^a\\x01b$"}, "control character"),
        ({"patternProperties": {"\u0002": {}}}, "control character"),
        ({"minimum": 2**60}, "the minimum 1152921504606846976 leaves only"),
    ],
)
def test_refusals_say_why(schema, words):
    assert words in refusal(schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "at '/type': \"objekt\" is not one of array,"),
        ({"type": ["string", 3]}, "at '/type': [\"string\", 3] is not one of"),
        ({"properties": {"a": {"items": {"type": {}}}}}, "at '/properties/a/items/type': {} is not one of"),
        ({"properties": {"a": 5}}, "at '/properties': {\"a\": 5} is not an object of schemas"),
        ({"patternProperties": []}, "[] is not an object of schemas"),
        ({"items": "x"}, '"x" is not a schema or a list of schemas'),
        ({"anyOf": []}, "[] is not a list of at least one schema"),
        ({"oneOf": [3]}, "[3] is not a list of at least one schema"),
        ({"required": True}, "true is not a list of names"),
        ({"enum": "x"}, "is not a list of at least one value"),
        ({"minLength": -1}, "-1 is not a whole number of 0 or more"),
        ({"maxItems": 1.5}, "1.5 is not a whole number"),
        ({"maxItems": True}, "true is not a whole number"),
        ({"maxItems": float("inf")}, "Infinity is not a whole number"),
        ({"minimum": "3"}, '"3" is not a number'),
        ({"multipleOf": 0}, "0 is not a number above 0"),
        ({"$ref": 3}, "3 is not a string"),
    ],
)
def test_keywords_of_the_wrong_form_are_named_with_their_place(schema, message):
    assert message in refusal(schema)


def test_size_depth_and_number_are_bounded(monkeypatch):
    nested = {"type": "string"}
    for _ in range(json_schema.MAX_SCHEMA_DEPTH):
        nested = {"items": nested}
    assert "deeper than" in refusal(nested)
    assert compilable(nested["items"], "p")
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert "too deeply" in refusal({"default": deep})
    monkeypatch.setattr(json_schema, "MAX_SCHEMA_NODES", 5)
    assert "more than 5" in refusal({"anyOf": [{}] * 5})
    monkeypatch.setattr(json_schema, "MAX_SCHEMA_BYTES", 50)
    assert "the limit is 50" in refusal({"description": "x" * 50})


def test_bounds_are_drawn_in_to_what_the_compiler_knows():
    bounds = {"minimum": -(2**63), "exclusiveMaximum": 1e300}
    assert compilable(bounds, "p").items() >= {"minimum": -(2**53), "exclusiveMaximum": 2**53}.items()
    # Beside a maximum of 0.5 the compiler would let 0 pass.
    assert 0 < compilable({"exclusiveMinimum": 0, "maximum": 0.5}, "p")["exclusiveMinimum"] < 1e-5
    assert -1e-5 < compilable({"exclusiveMaximum": 0}, "p")["exclusiveMaximum"] < 0
    assert bounds == {"minimum": -(2**63), "exclusiveMaximum": 1e300}


def test_whole_numbers_are_counts_in_any_spelling():
    assert repr(compilable({"maxLength": 2.0}, "p")["maxLength"]) == "2"


def tagged(tag, **fields):
    return {"type": "object", "properties": {"kind": {"const": tag}, **fields}, "required": ["kind"]}


@pytest.mark.parametrize(
    ("options", "exclusive"),
    [
        ([{"type": "integer"}, {"type": "string"}, {"type": ["null", "boolean"]}], True),
        ([{"type": "integer"}, {"type": "number"}], False),
        ([{"type": "string"}, {}], False),
        ([tagged("a"), tagged("b"), tagged("c")], True),
        ([tagged("a"), tagged("b"), tagged("a")], False),
        ([tagged("a"), tagged("b") | {"required": []}], False),
        ([tagged("a"), tagged("b"), {"type": "null"}], True),
        ([tagged("a"), {"type": ["object", "null"]}], False),
        ([{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], True),
        ([{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/loop"}], False),
        ([{"$ref": "#/$defs/a"}, True], False),
        ([tagged("a") | {"properties": {"kind": {"$ref": "#/$defs/kind"}}}, tagged("z")], True),
    ],
)
def test_options_that_exclude_each_other_are_found(options, exclusive):
    definitions = {"a": tagged("a"), "b": tagged("b"), "loop": {"$ref": "#/$defs/loop"}, "kind": {"enum": ["x", "y"]}}
    passed = compilable({"anyOf": [{"oneOf": options}], "$defs": definitions}, "p")
    assert passed["x-guidance"]["coerce_one_of"] is exclusive
