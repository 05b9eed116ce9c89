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

_HOW = (
    "To call a tool, write a JSON object with its name and its arguments between tags, and nothing after them:\n"
    '<tool_call>\n{"name": "the name", "arguments": {"an argument": "its value"}}\n</tool_call>\n'
    "The results come in the next message, between <tool_response> tags. Answer without a call when no tool helps."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptedFormat(JsonBlockFormat):
    """See ToolFormat."""

    def adapt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
        """See ToolFormat."""
        adapted = [
            _as_user_text(message) if message["role"] == "tool" else _with_calls_as_text(message)
            for message in fold_custom_calls(messages)
        ]
        if tools:
            add_tools_to_system(adapted, tools, _HOW)
        return adapted


def add_tools_to_system(messages: list[Message], tools: Sequence[Tool], how: str) -> None:
    """Describe the tools in the system message, and how to call them."""
    lines = "\n".join(json.dumps(any_definition(tool), ensure_ascii=False) for tool in tools)
    text = f"You can call tools. Each line between the tags describes one:\n<tools>\n{lines}\n</tools>\n{how}"
    if messages and messages[0]["role"] in ("system", "developer"):
        messages[0] = messages[0] | {"content": f"{messages[0]['content']}\n\n{text}"}
    else:
        messages.insert(0, {"role": "system", "content": text})


def _as_user_text(result: Message) -> Message:
    return {"role": "user", "content": f"<tool_response>\n{result['content']}\n</tool_response>"}


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
