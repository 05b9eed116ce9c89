"""The prompt of a turn: the chat template's variables settled, the messages rendered and tokenised."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from penstock.scheduler.messages import ModelReady

from ..errors import ApiError
from ..text.chat_template import MAX_SECONDS, QUICK_SECONDS, ChatTemplate, SlowTemplateError, TemplateRefusalError
from ..text.output_format import Grammar
from ..text.roles import settle_roles
from ..text.served_model import ServedModel
from ..text.threads import INLINE_CHARACTERS, TextThreads
from ..text.tool_formats.custom_block import any_definition
from ..text.turn_grammar import ThinkState
from .sampling import token_limit
from .text_length import check_text_length
from .turn_tools import TurnTools, resolve_tools
from .turn_types import TurnRequest

_THINKING_SWITCHES = ("enable_thinking", "thinking")
"""What chat templates call the variable that switches thinking on and off."""
_SCHEMA_SIZE = 500
"""Characters that the schema of a tool may have, for a guess at how long rendering takes."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt."""

    token_ids: list[int]
    tools: TurnTools
    thinking: ThinkState
    grammar: Grammar


async def render_prompt(request: TurnRequest, served: ServedModel, ready: ModelReady, threads: TextThreads) -> Prompt:
    """Render and tokenise, off the event loop if it is long.

    Raises:
        ApiError: the model has no chat template, or one that refuses the request; or the tool choice is impossible.
        RequestError: a schema or grammar of the request cannot be enforced.
    """
    template = served.chat_template
    if template is None:
        raise ApiError(
            f"The model '{served.name}' has no chat template. Use /v1/completions with a finished prompt.",
            code="model_not_supported",
            param="model",
        )
    variables = template_variables(request, served.name, template)
    tools = resolve_tools(request, template, served.tokenizer.table.control_ids)

    def render_and_encode(max_seconds: float) -> Prompt:
        tools.check_schemas()
        text = render_text(tools, variables, max_seconds)
        check_text_length(text, served, token_limit(ready), request.param)
        # The template has written the special tokens; the tokenizer would write some of them again.
        token_ids = served.tokenizer.encode(text, token_limit(ready), add_special_tokens=False)
        thinking = _think_state(template, text)
        return Prompt(token_ids, tools, thinking, tools.grammar(thinking))

    size = sum(len(message["content"]) for message in request.messages)
    size += sum(len(tool.description) + _SCHEMA_SIZE for tool in tools.offered)
    try:
        prompt = await _where_nobody_waits(render_and_encode, size, template, threads)
    except TemplateRefusalError as error:
        raise ApiError(f"Invalid '{request.param}': {error}.", code="invalid_value", param=request.param) from error
    if not prompt.token_ids:
        raise ApiError(
            f"Invalid '{request.param}': it renders to an empty prompt. Send some text.",
            code="empty_array",
            param=request.param,
        )
    return prompt


async def _where_nobody_waits(
    work: Callable[[float], Prompt], num_characters: int, template: ChatTemplate, threads: TextThreads
) -> Prompt:
    """`work`, told how many seconds the template may take: few on the event loop, and a slow one is kept off it."""
    if num_characters <= INLINE_CHARACTERS and not template.is_slow:
        with suppress(SlowTemplateError):
            return work(QUICK_SECONDS)
    if template.is_slow:
        return await threads.run_heavy(lambda: work(MAX_SECONDS))
    return await threads.run(num_characters, lambda: work(MAX_SECONDS))


def render_text(tools: TurnTools, variables: Mapping[str, Any], max_seconds: float) -> str:
    """The prompt's text, for which the chat template may take `max_seconds` of processor time.

    Raises:
        TemplateRefusalError: the chat template cannot render the messages.
    """
    request, template = tools.request, tools.template
    messages = tools.format.adapt(request.messages, tools.offered)
    return template.render(
        settle_roles(messages, template.roles),
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        tools=[any_definition(tool) for tool in tools.offered] if tools.format.reads_tools else (),
        variables=variables,
        max_seconds=max_seconds,
    )


def _think_state(template: ChatTemplate, prompt: str) -> ThinkState:
    think = template.think_markers
    if think is not None and think.is_open_after(prompt):
        return "inside"
    return "done" if think is not None and think.is_closed_after(prompt) else "free"


def template_variables(request: TurnRequest, model: str, template: ChatTemplate) -> dict[str, Any]:
    """The variables that a request sets in its chat template.

    One that the template does not read would change nothing, and the client would believe it had; only hints may. An
    effort for a template that knows no efforts but a switch turns the switch; "none" asks models without a switch for
    what they do anyway.

    Raises:
        ApiError: unsupported_parameter, the template does not read a variable.
    """
    variables = dict(request.template_variables)
    for name in variables:
        if name not in template.variables:
            raise _unread(f"chat_template_kwargs.{name}", name, model, template)
    switch = next((name for name in _THINKING_SWITCHES if name in template.variables), None)
    if request.enable_thinking is not None:
        if switch is not None:
            variables.setdefault(switch, request.enable_thinking)  # the more explicit place wins
        elif not request.style_is_hint:
            raise _unread("enable_thinking", "enable_thinking", model, template)
    if request.verbosity is not None:
        if "verbosity" in template.variables:
            variables.setdefault("verbosity", request.verbosity)
        elif request.verbosity != "medium" and not request.style_is_hint:
            raise _unread("verbosity", "verbosity", model, template)
    effort = request.reasoning_effort
    if effort is None:
        return variables
    if "reasoning_effort" in template.variables:
        variables.setdefault("reasoning_effort", effort)
    elif switch is not None:
        variables.setdefault(switch, effort != "none")
    elif effort != "none" and not request.style_is_hint:
        raise _unread("reasoning_effort", "reasoning_effort", model, template)
    return variables


def _unread(param: str, name: str, model: str, template: ChatTemplate) -> ApiError:
    known = ", ".join(sorted(template.variables)) or "none"
    return ApiError(
        f"Unsupported '{param}': the chat template of '{model}' has no variable {name}, so it would change nothing. "
        f"Leave it out. Variables of that template: {known}.",
        code="unsupported_parameter",
        param=param,
    )
