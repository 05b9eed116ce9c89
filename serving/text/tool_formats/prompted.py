"""Models whose chat template knows no tools: a system prompt describes them, and asks for calls as Hermes writes them.

Earlier calls stand in the assistant's text, and results in a message of the user.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..tools import Tool
from .custom_block import any_definition, fold_custom_calls
from .format import Message, arguments_object
from .json_block import JsonBlockFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptedFormat(JsonBlockFormat):
    """See ToolFormat."""

    def adapt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
        """See ToolFormat."""
        adapted: list[Message] = []
        for message in fold_custom_calls(messages):
            if message["role"] == "tool":
                _add_result(adapted, message)
            elif message["role"] == "user" and adapted and adapted[-1].get("holds_results"):
                # Many templates want users and assistants to take turns.
                adapted[-1] = {"role": "user", "content": f"{adapted[-1]['content']}\n\n{message['content']}"}
            else:
                adapted.append(_with_calls_as_text(message))
        for message in adapted:
            message.pop("holds_results", None)
        if tools:
            _add_system_text(adapted, system_text(tools))
        return adapted


def system_text(tools: Sequence[Tool]) -> str:
    """What describes the tools to the model."""
    lines = "\n".join(json.dumps(any_definition(tool), ensure_ascii=False) for tool in tools)
    return (
        "You can call tools. Each line between the tags describes one:\n"
        f"<tools>\n{lines}\n</tools>\n"
        "To call a tool, write a JSON object with its name and its arguments between tags, and nothing after them:\n"
        '<tool_call>\n{"name": "the name", "arguments": {"an argument": "its value"}}\n</tool_call>\n'
        "The results come in the next message, between <tool_response> tags. Answer without a call when no tool helps."
    )


def _add_system_text(messages: list[Message], text: str) -> None:
    if messages and messages[0]["role"] in ("system", "developer"):
        messages[0] = messages[0] | {"content": f"{messages[0]['content']}\n\n{text}"}
    else:
        messages.insert(0, {"role": "system", "content": text})


def _add_result(adapted: list[Message], message: Message) -> None:
    text = f"<tool_response>\n{message['content']}\n</tool_response>"
    if adapted and adapted[-1].get("holds_results"):
        adapted[-1]["content"] += f"\n{text}"
    else:
        adapted.append({"role": "user", "content": text, "holds_results": True})


def _with_calls_as_text(message: Message) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    written = [_written(call["function"]) for call in calls]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return rest | {"content": "\n".join(filter(None, [message["content"], *written]))}


def _written(function: dict[str, Any]) -> str:
    call = {"name": function["name"], "arguments": arguments_object(function["arguments"])}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


PROMPTED = PromptedFormat(begin="<tool_call>", end="</tool_call>", padding="\n", reads_tools=False)
