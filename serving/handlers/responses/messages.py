"""Turns input items into the messages of a chat template: one assistant message for what the model did at a time.

Thinking belongs to the assistant message after it, neighbouring calls to one message, and each output stands behind
the message with its call, wherever the client put it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...errors import ApiError
from ...protocol.responses.items import (
    CompactionItem,
    CustomToolCallItem,
    CustomToolCallOutputItem,
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
)
from ...protocol.responses.parts import text_of
from ...text.chat_template import Message
from .sealed import unseal
from .toolbox import flat_name

SUMMARY_REQUEST = (
    "Summarise this conversation so that it can go on from your summary alone. Keep what the user asked for and wants, "
    "every decision, fact, name, number, file and command that still counts, what is done, and what is left to do. "
    "Write the summary and nothing else."
)
"""What a compaction asks the model; its answer stands behind the same words when the item comes back."""


_OF_THE_APPLICATION = {"system", "developer"}


@dataclass(slots=True)
class _Step:
    """An assistant message with the outputs of its calls."""

    message: Message
    outputs: list[Message] = field(default_factory=list)


class _Builder:
    """The messages so far; the last step is open while nothing else has followed it."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._open: _Step | None = None
        self._thinking: list[str] = []
        self._callers: dict[str, _Step] = {}
        self._names: dict[str, str] = {}

    def messages(self) -> list[Message]:
        """All of them, with the outputs behind their calls."""
        if self._thinking:
            self._assistant()
        return [message for step in self._steps for message in (step.message, *step.outputs)]

    def say(self, role: str, text: str) -> None:
        """A message of anybody but the assistant. Neighbours of one role become one, as most templates demand."""
        if self._thinking:
            self._assistant()
        self._open = None
        last = self._steps[-1].message if self._steps else None
        if last is not None and (last["role"] == role or {last["role"], role} == _OF_THE_APPLICATION):
            last["content"] += f"\n\n{text}"
        else:
            self._steps.append(_Step({"role": role, "content": text}))

    def answer(self, text: str) -> None:
        """Text of the assistant."""
        step = self._assistant()
        if "tool_calls" in step.message:  # templates write the text before the calls
            step = self._new_step()
        before = step.message["content"]
        step.message["content"] = f"{before}\n{text}" if before else text

    def think(self, text: str) -> None:
        """Thinking, which belongs to what the assistant does next."""
        self._open = None
        self._thinking.append(text)

    def call(self, call_id: str, name: str, call: Message) -> None:
        """A call of a tool; `call` is its form in a message."""
        step = self._assistant()
        if step.outputs:
            step = self._new_step()
        step.message.setdefault("tool_calls", []).append(call)
        self._callers[call_id] = step
        self._names[call_id] = name

    def output(self, call_id: str, text: str, param: str) -> None:
        """What a tool gave back.

        Raises:
            ApiError: there is no such call before it.
        """
        step = self._callers.get(call_id)
        if step is None:
            raise ApiError(
                f"Invalid '{param}': there is no tool call '{call_id}' before this output. Send the call too.",
                code="invalid_value",
                param=param,
            )
        step.outputs.append({"role": "tool", "tool_call_id": call_id, "name": self._names[call_id], "content": text})

    def _assistant(self) -> _Step:
        """The open assistant message, or a new one with the thinking before it."""
        return self._open if self._open is not None else self._new_step()

    def _new_step(self) -> _Step:
        message: Message = {"role": "assistant", "content": ""}
        if self._thinking:
            message["reasoning_content"] = "\n".join(self._thinking)
            self._thinking = []
        self._open = _Step(message)
        self._steps.append(self._open)
        return self._open


def messages_of(
    instructions: str | None, history: Sequence[Item], items: Sequence[Item], *, all_thinking: bool = True
) -> list[Message]:
    """The messages of a conversation.

    Args:
        instructions: a system message before everything.
        history: what was before the request.
        items: the request's own; additional tools and a compaction trigger say nothing to the model.
        all_thinking: False: only the thinking after the last user message is shown.

    Raises:
        ApiError: an output without its call, or a compaction of another server.
    """
    everything = [*history, *items]
    last_user = max((i for i, item in enumerate(everything) if _is_user(item)), default=-1)
    builder = _Builder()
    if instructions:
        builder.say("system", instructions)
    for index, item in enumerate(everything):
        param = f"input.{index - len(history)}" if index >= len(history) else "input"
        match item:
            case MessageItem(role="assistant"):
                builder.answer(text_of(item.content))
            case MessageItem(role=role):
                builder.say(role, text_of(item.content))
            case ReasoningItem():
                if (thinking := _thinking(item)) and (all_thinking or index > last_user):
                    builder.think(thinking)
            case FunctionCallItem(call_id=call_id):
                name = flat_name(item.name, item.namespace)
                function = {"name": name, "arguments": item.arguments}
                builder.call(call_id, name, {"id": call_id, "type": "function", "function": function})
            case CustomToolCallItem(call_id=call_id):
                name = flat_name(item.name, item.namespace)
                custom = {"name": name, "input": item.input}
                builder.call(call_id, name, {"id": call_id, "type": "custom", "custom": custom})
            case FunctionCallOutputItem(call_id=call_id) | CustomToolCallOutputItem(call_id=call_id):
                builder.output(call_id, text_of(item.output), f"{param}.call_id")
            case CompactionItem():
                builder.say("user", SUMMARY_REQUEST)
                builder.answer(_summary(item, param))
    return builder.messages()


def _is_user(item: Item) -> bool:
    return isinstance(item, MessageItem) and item.role == "user"


def _thinking(item: ReasoningItem) -> str:
    """The text of a reasoning item, from whichever of its three places has it; another server's sealed one has none."""
    sealed = unseal("reasoning", item.encrypted_content) if item.encrypted_content else None
    return text_of(item.content) or sealed or text_of(item.summary)


def _summary(item: CompactionItem, param: str) -> str:
    summary = unseal("compaction", item.encrypted_content)
    if summary is None:
        raise ApiError(
            f"Invalid '{param}.encrypted_content': another server wrote it, so it cannot be read here. "
            "Send the conversation itself.",
            code="invalid_value",
            param=f"{param}.encrypted_content",
        )
    return summary
