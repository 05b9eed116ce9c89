"""Conversations in orders of roles that chat templates refuse."""

from typing import Any

import pytest

from penstock.serving.text.chat_template import ChatTemplate
from penstock.serving.text.roles import RoleRules, settle_roles

ALL = RoleRules(system=True, late_system=True, neighbours=True)
FIRST_ONLY = RoleRules(system=True, late_system=False, neighbours=True)
STRICT = RoleRules(system=False, late_system=False, neighbours=False)

ANY_ROLE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
SYSTEM_FIRST = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('system first') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)
DROPS_LATE_SYSTEM = (
    "{% if messages[0].role == 'system' %}[system] {{ messages[0].content }}\n{% endif %}"
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)
TAKES_TURNS = (
    "{% for m in messages %}{% if m.role != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
    "{{ raise_exception('take turns') }}{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)


def chat(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.mark.parametrize(
    ("source", "rules"),
    [
        (ANY_ROLE, ALL),
        (SYSTEM_FIRST, FIRST_ONLY),
        (DROPS_LATE_SYSTEM, FIRST_ONLY),
        (TAKES_TURNS, STRICT),
        (
            "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
            ALL,
        ),
    ],
)
def test_what_a_template_takes(source: str, rules: RoleRules) -> None:
    assert ChatTemplate(source, {}).roles == rules


AGENT = chat(("system", "A."), ("user", "B."), ("system", "C."), ("assistant", "D."), ("user", "E."), ("user", "F."))


def test_what_is_taken_stays() -> None:
    assert settle_roles(AGENT, ALL) == AGENT


def test_late_system_messages_become_the_users() -> None:
    settled = settle_roles(AGENT, FIRST_ONLY)
    assert settled == [*AGENT[:2], *chat(("user", "[System message]\nC.")), *AGENT[3:]]


def test_users_and_assistants_take_turns() -> None:
    settled = settle_roles(AGENT, STRICT)
    assert settled == chat(("user", "A.\n\nB.\n\n[System message]\nC."), ("assistant", "D."), ("user", "E.\n\nF."))


def test_neighbouring_system_messages_at_the_beginning_become_one() -> None:
    messages = chat(("developer", "A."), ("system", "B."), ("user", "C."))
    assert settle_roles(messages, ALL) == messages
    assert settle_roles(messages, FIRST_ONLY) == chat(("developer", "A.\n\nB."), ("user", "C."))
    assert settle_roles(messages, STRICT) == chat(("user", "A.\n\nB.\n\nC."))


def test_results_of_tools_stand_between() -> None:
    messages = chat(("user", "A."), ("assistant", ""), ("tool", "B."), ("user", "C."))
    assert settle_roles(messages, STRICT) == messages
    assert settle_roles(chat(("system", "A.")), STRICT) == chat(("user", "A."))


@pytest.mark.parametrize("source", [ANY_ROLE, SYSTEM_FIRST, DROPS_LATE_SYSTEM, TAKES_TURNS])
def test_every_text_reaches_the_prompt_in_its_order(source: str) -> None:
    template = ChatTemplate(source, {})
    prompt = template.render(settle_roles(AGENT, template.roles))
    positions = [prompt.index(f"{letter}.") for letter in "ABCDEF"]
    assert positions == sorted(positions)
