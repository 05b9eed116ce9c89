"""Chat templates render as transformers renders them."""

from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tiny_tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from penstock.scheduler.errors import ModelLoadError
from penstock.serving.text.chat_template import (
    ChatTemplate,
    SlowTemplateError,
    TemplateRefusalError,
    load_chat_template,
)
from penstock.serving.text.served_model import load_served_model

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "be <nice> & 'kind'"},
    {"role": "user", "content": "hi\n"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"ü": "<b>"}}}],
    },
    {"role": "user", "content": "so?"},
]
TEMPLATES = {
    "plain": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    "blocks": """{%- for m in messages %}
    {%- if m.role == 'system' %}
        {%- continue %}
    {%- endif %}
    {% if loop.index > 3 %}{% break %}{% endif %}
{{ m.role }}: {{ m.content }}
{% endfor %}""",
    "tools": "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ c.function | tojson }}{{ c.function.arguments | tojson(indent=2) }}{% endfor %}{% else %}{{ m.content }}"
    "{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{{ strftime_now('%Y') }}{{ dict(a=1) | tojson }}{{ enable_thinking is defined }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_equals_transformers(name: str) -> None:
    source = TEMPLATES[name]
    (expected,), _ = render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=True, **TOKENS)
    assert ChatTemplate(source, TOKENS).render(MESSAGES) == expected


@pytest.mark.parametrize("name", ["plain", "generation"])
def test_continued_message_is_left_open(name: str) -> None:
    template = ChatTemplate(TEMPLATES[name], TOKENS)
    messages = [*MESSAGES, {"role": "assistant", "content": "I think"}]
    text = template.render(messages, continue_final_message=True)
    assert text.endswith("I think")
    assert messages[-1]["content"] == "I think"


def test_refusals_are_for_the_client() -> None:
    for source, words in [
        ("{{ raise_exception('no system role') }}", "refuses these messages: no system role"),
        ("{{ messages[0].content + 5 }}", "cannot render these messages: TypeError"),
        ("{% for x in messages.__class__.__mro__ %}{{ x }}{% endfor %}", "unsafe"),
    ]:
        with pytest.raises(TemplateRefusalError, match=words):
            ChatTemplate(source, {}).render(MESSAGES)
    with pytest.raises(TemplateRefusalError, match="cannot be continued"):
        ChatTemplate("{{ messages[0].content }}", {}).render(MESSAGES, continue_final_message=True)


def test_developer_is_a_system_to_templates_that_do_not_know_it() -> None:
    chat = [{"role": "developer", "content": "x"}]
    assert ChatTemplate("{{ messages[0].role }}", {}).render(chat) == "system"
    assert ChatTemplate("{# developer #}{{ messages[0].role }}", {}).render(chat) == "developer"


def test_templates_that_want_parts_get_parts() -> None:
    source = (
        "{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}<{{ part.text }}>{% endif %}"
    )
    template = ChatTemplate(source + "{% endfor %}{% endfor %}", {})
    assert template.render([{"role": "user", "content": "hi"}]) == "<hi>"
    assert template.render([{"role": "user", "content": "hi"}], continue_final_message=True) == "<hi"


def test_variables_reach_the_template() -> None:
    template = ChatTemplate("{{ enable_thinking }}{{ bos_token }}", TOKENS)
    assert template.render(MESSAGES, variables={"enable_thinking": False}) == "False<s>"


@pytest.mark.parametrize(
    ("source", "variables"),
    [
        ("{{ messages }}{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ strftime_now('%Y') }}", set()),
        ("{% set ns = namespace(a=1) %}{% for i in range(2) %}{{ raise_exception('x') }}{% endfor %}", set()),
        ("{% if x is not defined %}{% set x = true %}{% endif %}{{ x }}", {"x"}),
        ("{% set x = x if x is defined else false %}{{ x }}", {"x"}),
        ("{% macro f(a) %}{{ a }}{{ inner }}{% endmacro %}{% generation %}{{ f(1) }}{% endgeneration %}", {"inner"}),
        ("{# mentioned #}{{ bos_token }}{% set own = 1 %}{{ own }}", {"bos_token"}),
    ],
)
def test_what_a_template_reads_is_known(source: str, variables: set[str]) -> None:
    assert ChatTemplate(source, TOKENS).variables == variables


def test_templates_are_found_in_every_place(tmp_path: Path) -> None:
    def found() -> str | None:
        template = load_chat_template(tmp_path, {})
        return template.render(MESSAGES) if template else None

    assert found() is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text("{}")
    assert found() is None
    config.write_text(
        '{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}'
    )
    assert found() == "d"
    config.write_text('{"chat_template": "c"}')
    assert found() == "c"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "j"}')
    assert found() == "j"
    (tmp_path / "chat_template.jinja").write_text("x")
    assert found() == "x"


BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "calls": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(100) }}",
    "recursive loops": "{% for a in [1, 1] recursive %}{{ loop([1, 1]) if loop.depth < 60 }}{% endfor %}",
    "a long range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "much text": "{% for a in range(99999) %}{{ 'x' * 65536 }}{% endfor %}",
    "repetition": "{{ 'x' * 10 ** 10 }}",
    "a repeated list": "{{ [0] * 10 ** 10 }}",
    "a huge number": "{{ 2 ** 20000000 }}",
    "doubling": "{% set n = namespace(s='xxxx') %}{% for a in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by addition": "{% set n = namespace(s='xx') %}{% for a in range(99) %}"
    "{% set n.s = n.s + n.s %}{% endfor %}",
    "replacing": "{% set n = namespace(s='x') %}{% for a in range(99) %}"
    "{% set n.s = n.s.replace('x', 'xx') %}{% endfor %}",
    "a filter that replaces": "{% set n = namespace(s='x') %}{% for a in range(99) %}"
    "{% set n.s = n.s | replace('x', 'xx') %}{% endfor %}",
    "joining": "{{ ([('x' * 2 ** 20)] * 100) | join }}",
    "padding": "{{ 'x'.ljust(10 ** 10) }}",
    "a filter that pads": "{{ 'x' | center(10000000000) }}",
    "a wide field": "{{ '%10000000000d' % 1 }}",
    "a wide field of a method": "{{ '{:10000000000}'.format(1) }}",
    "a width as an argument": "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "escaping": "{{ ''.__class__.__mro__ }}",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_hostile_template_is_stopped(bomb: str) -> None:
    template = ChatTemplate(
        "{% if messages[0].content == 'bomb' %}" + bomb + "{% endif %}{{ messages[0].content }}", {}
    )
    assert template.render([{"role": "user", "content": "hi"}]) == "hi"
    with pytest.raises(TemplateRefusalError) as refusal:
        template.render([{"role": "user", "content": "bomb"}], max_seconds=0.3)
    assert template.is_slow == isinstance(refusal.value, SlowTemplateError)


@pytest.mark.parametrize("source", ["{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "x" * (2**20 + 1)])
def test_a_template_that_is_too_long_or_too_deep_is_refused_when_it_is_read(source: str, tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(ModelLoadError, match="cannot be used"):
        load_served_model("m", "generate", tmp_path)
