"""The fields that give a text a form, read into one format."""

import json

import pytest
from pydantic import ValidationError

from penstock.scheduler.errors import RequestError
from penstock.serving.handlers.output_format import resolve_output_format
from penstock.serving.protocol.completion import CompletionBody
from penstock.serving.protocol.explain import explain

SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
TEXT = json.dumps(SCHEMA)


def read(**fields):
    return resolve_output_format(CompletionBody.model_validate({"model": "m", "prompt": "x", **fields}))


def problem(**fields):
    with pytest.raises(ValidationError) as caught:
        read(**fields)
    return explain(caught.value)


@pytest.mark.parametrize("strict", [True, False, "true", "false", None])
def test_openais_form(strict):
    wrapped = {"name": "n", "description": "d", "schema": SCHEMA, "strict": strict}
    found = read(response_format={"type": "json_schema", "json_schema": wrapped})
    assert (found.kind, found.source) == ("json_schema", TEXT)
    assert found.param == "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("fields", "kind", "source", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", "", "response_format"),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            "json_schema",
            TEXT,
            "response_format.schema",
        ),
        ({"json_schema": SCHEMA}, "json_schema", TEXT, "json_schema"),
        ({"guided_json": SCHEMA}, "json_schema", TEXT, "guided_json"),
        ({"guided_json": TEXT, "guided_decoding_backend": "x"}, "json_schema", TEXT, "guided_json"),
        ({"regex": "a+"}, "regex", "a+", "regex"),
        ({"regex": "a+", "response_format": {"type": "text"}}, "regex", "a+", "regex"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"grammar": 'start: "a"'}, "lark", 'start: "a"', "grammar"),
        ({"guided_grammar": "root ::="}, "lark", "root ::=", "guided_grammar"),
        ({"choice": ["a", "b"]}, "choice", '["a", "b"]', "choice"),
        ({"guided_choice": ["a"]}, "choice", '["a"]', "guided_choice"),
        ({"structured_outputs": {"json": TEXT}}, "json_schema", TEXT, "structured_outputs.json"),
        ({"structured_outputs": {"json": True}}, "json_schema", "true", "structured_outputs.json"),
        ({"structured_outputs": {"json_object": True}}, "json_object", "", "structured_outputs.json_object"),
        ({"structured_outputs": {"regex": "a", "json_object": False}}, "regex", "a", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a"]}}, "choice", '["a"]', "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "g"}}, "lark", "g", "structured_outputs.grammar"),
    ],
)
def test_every_form(fields, kind, source, param):
    found = read(**fields)
    assert (found.kind, found.source, found.param) == (kind, source, param)


def test_free_text():
    assert read() is None
    assert read(response_format={"type": "text"}) is None
    assert read(regex=None, response_format=None) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"strict": "yes"}}},
            "response_format.json_schema.strict",
        ),
        ({"regex": ""}, "regex"),
        ({"choice": []}, "choice"),
        ({"choice": "a"}, "choice"),
        ({"json_schema": 3}, "json_schema"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"regex": "a", "choice": ["b"]}, "choice"),
        ({"regex": "a", "response_format": {"type": "json_object"}}, "regex"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(fields, param):
    assert problem(**fields).param == param


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_schemas_as_text_must_be_json(text):
    with pytest.raises(RequestError, match="the schema is") as caught:
        read(guided_json=text)
    assert caught.value.param == "guided_json"
