"""Puts a conversation into the order of roles that a chat template can take.

Agents write system messages in the middle of a conversation and several messages of one role in a row. Many templates
take one system message, at the beginning or nowhere, and want users and assistants to take turns; they refuse
the rest, or drop it without a word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]

_SYSTEM = ("system", "developer")


@dataclass(frozen=True, slots=True)
class RoleRules:
    """What a chat template takes."""

    system: bool
    """A system message at the beginning."""
    late_system: bool
    """System messages elsewhere."""
    neighbours: bool
    """Two messages of the user in a row."""


def settle_roles(messages: Sequence[Message], rules: RoleRules) -> list[Message]:
    """The messages in an order that the template takes, with nothing of their text lost.

    What does not fit becomes words of the user, in its place: a system message says what it is.
    """
    settled: list[Message] = []
    for index, message in enumerate(messages):
        if message["role"] in _SYSTEM:
            leads = all(before["role"] in _SYSTEM for before in messages[:index])
            if leads and settled and not rules.late_system:
                settled[0] = _joined(settled[0], message)
                continue
            if not (rules.late_system or leads):
                message = {"role": "user", "content": f"[System message]\n{message['content']}"}
        settled.append(message)
    if not rules.system and settled and settled[0]["role"] in _SYSTEM:
        settled[0] = settled[0] | {"role": "user"}
        if len(settled) > 1 and settled[1]["role"] == "user":
            settled[:2] = [_joined(settled[0], settled[1])]
    return settled if rules.neighbours else _taking_turns(settled)


def _taking_turns(messages: Sequence[Message]) -> list[Message]:
    turns: list[Message] = []
    for message in messages:
        if turns and message["role"] == turns[-1]["role"] == "user":
            turns[-1] = _joined(turns[-1], message)
        else:
            turns.append(message)
    return turns


def _joined(first: Message, second: Message) -> Message:
    return first | {"content": f"{first['content']}\n\n{second['content']}"}
