"""Formats as grammars, judged by the compiler and by the texts they take."""

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from penstock.scheduler.errors import RequestError
from penstock.serving.text import output_format
from penstock.serving.text.output_format import (
    OutputFormat,
    grammar_of,
    join_grammars,
    lark_regex,
    lark_rule,
    lark_string,
)


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte."""
    return LLTokenizer("byte")


def takes(tokenizer, grammar, text):
    matcher = LLMatcher(tokenizer, grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
PERSON |= {"required": ["name", "age"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("kind", "source", "good", "bad"),
    [
        ("json_object", "", ['{"a": [1, null]}', "{}"], ["[]", "1", '{"a"}']),
        (
            "json_schema",
            json.dumps(PERSON),
            ['{"name": "A", "age": 3}', '{\n  "name":"é",\n  "age":3\n}'],
            ['{"age":3}'],
        ),
        ("json_schema", "true", ["3", "[]", '"x"'], ["nul"]),
        ("regex", r"a/b\/\d{2}", ["a/b/12"], ["a/b/1", "xa/b/12"]),
        ("regex", "a\nb", ["a\nb"], ["anb", "a b"]),
        ("choice", json.dumps(['a"', "ab", "Zürich\n", "a\\"]), ['a"', "ab", "Zürich\n", "a\\"], ["a", "b"]),
        ("lark", 'start: WORD ("," WORD)*\nWORD: /[a-z]+/', ["ab,c"], [","]),
        ("lark", '# words\nroot ::= word ("," word)*\nword ::= [a-z]+', ["ab,c"], [","]),
    ],
)
def test_a_format_alone_and_inside_a_larger_grammar(tokenizer, kind, source, good, bad):
    wanted = OutputFormat(kind, source, "p")
    alone = grammar_of(wanted)
    rule, others = lark_rule(wanted, "answer")
    inside = join_grammars(f'start: "<<" answer ">>"\n{rule}', others)
    for text in good:
        assert takes(tokenizer, alone, text), text
        assert takes(tokenizer, inside, f"<<{text}>>"), text
    for text in bad:
        assert not takes(tokenizer, alone, text), text


def test_two_formats_share_one_grammar(tokenizer):
    rules, grammars = [], []
    for number, source in enumerate(['start: "x"', 'start: "y" | two\ntwo: "z"']):
        rule, others = lark_rule(OutputFormat("lark", source, "p"), f"f{number}")
        rules.append(rule)
        grammars += others
    grammar = join_grammars("\n".join(["start: f0 f1", *rules]), grammars)
    assert takes(tokenizer, grammar, "xz")
    assert not takes(tokenizer, grammar, "zx")


def test_json_has_no_endless_whitespace(tokenizer):
    grammar = grammar_of(OutputFormat("json_object", "", "p"))
    assert takes(tokenizer, grammar, '{\n    "a": 1\n}')
    assert not takes(tokenizer, grammar, '{  "a": 1}')
    assert not takes(tokenizer, grammar, '{\n\n"a": 1}')
    assert not takes(tokenizer, grammar, "{\n" + " " * 17)


def test_keys_come_in_the_schemas_order(tokenizer):
    schema = {"type": "object", "properties": {"z": {"type": "null"}, "a": {"type": "null"}}, "required": ["z", "a"]}
    grammar = grammar_of(OutputFormat("json_schema", json.dumps(schema), "p"))
    assert takes(tokenizer, grammar, '{"z":null,"a":null}')
    assert not takes(tokenizer, grammar, '{"a":null,"z":null}')


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("regex", "", "is empty"),
        ("regex", "x" * 65_537, "65537 bytes, the limit is 65536"),
        ("lark", "", "is empty"),
        ("lark", "hello", "neither a Lark grammar"),
        ("lark", "a ::= b\n" * 300, "may have 256 rules"),
        ("lark", "root ::= nowhere", "'nowhere' not found"),
        ("lark", "root ::= " + "(" * 3000, "nested too deeply"),
        ("choice", "[]", "nothing to choose"),
        ("choice", '["a", ""]', "is empty"),
        ("choice", json.dumps(["a"] * 1025), "1025 choices"),
        ("choice", json.dumps(["a" * 70_000]), "the limit is 65536"),
        ("json_schema", '{"not": {}}', "'not' cannot be enforced"),
    ],
)
def test_bad_formats_are_refused_with_the_field(kind, source, words):
    with pytest.raises(RequestError) as caught:
        grammar_of(OutputFormat(kind, source, "structured_outputs.x"))
    assert words in caught.value.message
    assert caught.value.param == "structured_outputs.x"


def test_lark_expressions_keep_their_text(tokenizer):
    text = 'a "quoted" \\ /slash/\t\u00e9\u2028\n'
    assert takes(tokenizer, join_grammars(f"start: {lark_string(text)}", []), text)
    assert lark_regex(r"\/a/\\") == r"/\/a\/\\/"


def test_large_choices_stay_within_their_limit(tokenizer):
    choices = [f"choice {number}" for number in range(output_format.MAX_CHOICES)]
    grammar = grammar_of(OutputFormat("choice", json.dumps(choices), "p"))
    assert takes(tokenizer, grammar, "choice 1023")
