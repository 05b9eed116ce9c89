"""Renders a model's chat template as transformers does: the same sandbox, filters and variables, without transformers.

A template comes with a model's files and is not trusted: it runs in a sandbox with bounds and sees plain data.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta

from ..protocol.chat import RESERVED_TEMPLATE_NAMES
from .reasoning import find_think_markers
from .roles import RoleRules
from .template_sandbox import Sandbox, TemplateLimitError, TemplateTimeError, render_bounded
from .tool_formats.detect import detect_tool_format
from .tool_formats.format import arguments_object

Message = dict[str, Any]

_END_MARK = "<|penstock: the message goes on here|>"
_PROBE = "penstock-probe"

MAX_SECONDS = 5.0
"""Of processor time for one prompt; that of ten thousand messages takes a tenth of a second."""
QUICK_SECONDS = 0.05
"""The same on the event loop, where everybody waits for it."""


class TemplateRefusalError(ValueError):
    """The template cannot render these messages; the message is for the client."""


class SlowTemplateError(TemplateRefusalError):
    """It takes longer than it was given."""


class ChatTemplate:
    """One compiled chat template.

    Args:
        source: the jinja text.
        special_tokens: its variables such as `bos_token`.

    Attributes:
        variables: the names that it reads and that a request may set.
        think_markers: what the model writes around its thinking, if it thinks.
        tool_format: how the model calls tools.
        roles: which orders of roles it takes.
        is_slow: it has once taken longer than it was given.

    Raises:
        TemplateError: `source` is no template, or one that goes beyond the sandbox's bounds with a few words.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.is_slow = False
        environment = Sandbox()
        self._template = environment.compile_bounded(source)
        read = meta.find_undeclared_variables(environment.parse(source))
        self.variables = frozenset(read - environment.globals.keys() - RESERVED_TEMPLATE_NAMES)
        self.think_markers = find_think_markers(source)
        self.tool_format = detect_tool_format(source, reads_tools="tools" in read)
        self._special_tokens = dict(special_tokens)
        self._knows_developer = "developer" in source
        self._wants_parts = not self._shows(_said(_PROBE)) and self._shows(_said([{"type": "text", "text": _PROBE}]))
        self.roles = self._find_roles()
        self._arguments_as_text, self._empty_content = self._find_form_of_calls()

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        max_seconds: float = MAX_SECONDS,
    ) -> str:
        """The prompt of a chat.

        Args:
            messages: `content` is a text here, and the arguments of calls are JSON text or an object; both become what
                the template wants.
            add_generation_prompt: end with the header of the assistant's answer.
            continue_final_message: end within the last message, so that the answer goes on with it.
            tools: definitions of the tools to offer.
            variables: further variables of the template.
            max_seconds: processor time that it may take.

        Raises:
            SlowTemplateError: it takes longer.
            TemplateRefusalError: the template refuses or cannot take these messages.
        """
        messages = [self._adapt(message) for message in messages]
        if continue_final_message:
            messages[-1]["content"] = _append(messages[-1]["content"], _END_MARK)
        values = self._special_tokens | dict(variables or {})
        if tools:
            values["tools"] = list(tools)
        try:
            values |= {
                "messages": messages,
                "add_generation_prompt": add_generation_prompt and not continue_final_message,
            }
            text = render_bounded(self._template, values, max_seconds)
        except TemplateTimeError:
            self.is_slow = True
            raise SlowTemplateError(
                f"the model's chat template takes more than {max_seconds:g} seconds for these messages"
            ) from None
        except jinja2.TemplateError as error:
            raise TemplateRefusalError(f"the model's chat template refuses these messages: {error}") from None
        except Exception as error:  # templates fail in any way when a message has not the form they expect
            raise TemplateRefusalError(
                f"the model's chat template cannot render these messages: {type(error).__name__}: {error}"
            ) from None
        if not continue_final_message:
            return text
        before, mark, _ = text.rpartition(_END_MARK)
        if not mark:
            raise TemplateRefusalError("the model's chat template drops the last message, so it cannot be continued")
        return before

    def _adapt(self, message: Message) -> Message:
        message = dict(message)
        if message["role"] == "developer" and not self._knows_developer:
            message["role"] = "system"
        if message.get("tool_calls"):
            message["tool_calls"] = [self._adapt_call(call) for call in message["tool_calls"]]
            message["content"] = message["content"] or self._empty_content
        if self._wants_parts and message["content"] is not None:
            message["content"] = [{"type": "text", "text": message["content"]}]
        return message

    def _adapt_call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function["arguments"]
        if self._arguments_as_text:
            arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        else:
            arguments = arguments_object(arguments)
        return {**call, "function": {**function, "arguments": arguments}}

    def _find_roles(self) -> RoleRules:
        probe, hi = ([self._adapt(message)] for message in ({"role": "system", "content": _PROBE}, *_said("hi")))
        return RoleRules(
            system=self._shows([*probe, *hi]),
            late_system=self._shows([*hi, *probe, *hi]),
            neighbours=self._shows([*map(self._adapt, _said(_PROBE)), *hi]),
        )

    def _find_form_of_calls(self) -> tuple[bool, str | None]:
        """Whether arguments go in as text, and what a message that only calls has as its content."""
        for as_text in (False, True):
            for content in (None, ""):
                arguments = {_PROBE: "x"}
                function = {"name": "probe", "arguments": json.dumps(arguments) if as_text else arguments}
                call = {"id": "123456789", "type": "function", "function": function}
                result = {"role": "tool", "tool_call_id": "123456789", "name": "probe", "content": "x"}
                calling = {"role": "assistant", "content": content, "tool_calls": [call]}
                if self._shows([*_said("hi"), calling, result], not_as=(f"'{_PROBE}'", f'\\"{_PROBE}', "None")):
                    return as_text, content
        return False, ""

    def _shows(self, messages: Sequence[Message], not_as: Sequence[str] = ()) -> bool:
        """Whether the probe reaches the prompt, and in none of these forms."""
        try:
            values = {**self._special_tokens, "messages": messages, "add_generation_prompt": True}
            text = render_bounded(self._template, values, MAX_SECONDS)
        except TemplateLimitError:
            raise
        except Exception:  # a template may want other messages; then one guess is as good as any
            return False
        return _PROBE in text and not any(form in text for form in not_as)


def _said(content: object) -> list[Message]:
    return [{"role": "user", "content": content}]


def load_chat_template(folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template of a model folder, None if it has none.

    `chat_template.jinja` wins over `chat_template.json`, and that over the `chat_template` of tokenizer_config.json,
    which is a text or a list of named templates; of those `default` is taken.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return ChatTemplate(path.read_text("utf-8"), special_tokens)
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        source = json.loads(path.read_bytes()).get("chat_template") if path.is_file() else None
        if isinstance(source, list):
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default") or next(iter(named.values()), None)
        if source:
            return ChatTemplate(source, special_tokens)
    return None


def _append(content: str | list[dict[str, Any]], mark: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content + mark
    return [*content[:-1], {**content[-1], "text": content[-1]["text"] + mark}]
