"""Anthropic's messages as chat templates know them: texts, calls and results each in a message of its own."""

from collections.abc import Iterator, Sequence
from typing import Any

from ...protocol.anthropic.content import InputMessage, TextBlock, ThinkingBlock, ToolResultBlock, ToolUseBlock
from ...text.chat_template import Message

_BILLING = "x-anthropic-billing-header:"
"""Claude Code's first system block tells Anthropic's counter who pays. It changes often, and with it would the
beginning of every prompt, so that nothing of it could come from the prefix cache."""


def template_messages(system: Sequence[TextBlock], messages: Sequence[InputMessage]) -> list[Message]:
    """The whole conversation."""
    rendered: list[Message] = []
    preamble = [block for block in system if not block.text.startswith(_BILLING)]
    if preamble:
        rendered.append({"role": "system", "content": _text(preamble)})
    tool_names: dict[str, str] = {}
    for message in messages:
        if message.role == "assistant":
            rendered.append(_assistant(message, tool_names))
        else:
            rendered += _said(message, tool_names)
    return rendered


def _text(blocks: Sequence[TextBlock]) -> str:
    return "\n".join(block.text for block in blocks)


def _assistant(message: InputMessage, tool_names: dict[str, str]) -> Message:
    """One message; thinking that was redacted is not known."""
    # Blocks of one answer follow each other without a break; the model wrote the white space between them.
    rendered: Message = {
        "role": "assistant",
        "content": "".join(block.text for block in message.content if isinstance(block, TextBlock)),
    }
    thinking = [block.thinking for block in message.content if isinstance(block, ThinkingBlock) and block.thinking]
    if thinking:
        rendered["reasoning_content"] = "\n".join(thinking)
    calls: list[dict[str, Any]] = []
    for block in message.content:
        if isinstance(block, ToolUseBlock):
            tool_names[block.id] = block.name
            calls.append(
                {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
            )
    if calls:
        rendered["tool_calls"] = calls
    return rendered


def _said(message: InputMessage, tool_names: dict[str, str]) -> Iterator[Message]:
    """A user's or system's message: its texts and its results, in their order."""
    texts: list[TextBlock] = []
    for block in message.content:
        if isinstance(block, TextBlock):
            texts.append(block)
        elif isinstance(block, ToolResultBlock):
            if texts:
                yield {"role": message.role, "content": _text(texts)}
                texts = []
            yield _result(block, tool_names)
    if texts:
        yield {"role": message.role, "content": _text(texts)}


def _result(block: ToolResultBlock, tool_names: dict[str, str]) -> Message:
    """A tool's answer. Chat templates know no failed ones, so the text says it."""
    content = _text(block.content)
    return {
        "role": "tool",
        "tool_call_id": block.tool_use_id,
        "name": tool_names[block.tool_use_id],
        "content": f"Error: {content}" if block.is_error else content,
    }
