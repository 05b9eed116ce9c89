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
        ({"$ref": 3}, "leads out"),
        ({"minProperties": 2, "required": ["a"]}, "minProperties 2"),
    ],
)
def test_refusals_say_why(schema, words):
    assert words in refusal(schema)


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
