"""What a chat completion's body asks of a turn: its messages, tools and wishes without OpenAI's forms."""

import uuid
from collections.abc import Sequence

from ..principal import Principal
from ..protocol.chat import ChatCompletionBody, ChatMessage, FunctionCall, ToolCall
from ..protocol.tools import AllowedToolsChoice, Custom, Function, Named, NamedCustom, NamedFunction
from ..text.chat_template import Message
from ..text.tools import CustomFormat, Tool, ToolChoice
from .output_format import resolve_output_format
from .sampling import wishes_of
from .turn_types import TurnRequest


def turn_request(body: ChatCompletionBody, principal: Principal) -> TurnRequest:
    """The body's meaning.

    Raises:
        RequestError: a schema that came as text is no JSON.
    """
    return TurnRequest(
        request_id=f"chatcmpl-{uuid.uuid4().hex}",
        model=body.model,
        messages=template_messages(body.messages),
        tools=_tools(body),
        tool_choice=_tool_choice(body),
        # The older form has room for one call.
        parallel_tool_calls=body.parallel_tool_calls and not body.functions,
        output_format=resolve_output_format(body),
        sampling=wishes_of(
            body,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            logprobs=body.top_logprobs if body.logprobs else None,
        ),
        n=body.n,
        stop=body.stop,
        reasoning_effort=body.reasoning_effort,
        enable_thinking=body.enable_thinking,
        verbosity=body.verbosity,
        template_variables=body.chat_template_kwargs,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=body.continue_final_message,
        ttl=body.ttl,
        principal=principal,
        priority=body.priority,
        cache_salt=body.cache_salt,
    )


def template_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Messages as chat templates expect them. What answers a call in the older form finds it by its place."""
    rendered = []
    call_id = ""
    for number, message in enumerate(messages):
        if message.function_call is not None:
            call_id = f"call_{number}"
        rendered.append(_template_message(message, call_id))
    return rendered


def _template_message(message: ChatMessage, call_id: str) -> Message:
    rendered: Message = {
        # "function" is what the role "tool" was called before; templates know the newer name
        "role": "tool" if message.role == "function" else message.role,
        "content": "\n".join(part.text for part in message.content) or message.refusal or "",
    }
    if message.name is not None:
        rendered["name"] = message.name
    if message.role == "function":
        rendered["tool_call_id"] = call_id
    elif message.tool_call_id is not None:
        rendered["tool_call_id"] = message.tool_call_id
    if (reasoning := message.reasoning_content or message.reasoning) is not None:
        rendered["reasoning_content"] = reasoning
    calls = [_template_call(call) for call in message.tool_calls]
    if message.function_call is not None:
        calls.append(_function_call(message.function_call, call_id))
    if calls:
        rendered["tool_calls"] = calls
    return rendered


def _template_call(call: ToolCall) -> Message:
    if call.custom is not None:
        custom = {"name": call.custom.name, "input": call.custom.input}
        return {"id": call.id, "type": "custom", "custom": custom}
    assert call.function is not None, "the body has checked that a call is of one type"
    return _function_call(call.function, call.id)


def _function_call(function: FunctionCall, call_id: str) -> Message:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": function.name, "arguments": function.arguments},
    }


def _tools(body: ChatCompletionBody) -> list[Tool]:
    functions = [_function(function, f"functions.{i}.parameters") for i, function in enumerate(body.functions)]
    return functions + [
        _function(tool.function, f"tools.{i}.function.parameters")
        if tool.type == "function"
        else _custom(tool.custom, f"tools.{i}.custom.format")
        for i, tool in enumerate(body.tools)
    ]


def _function(function: Function, param: str) -> Tool:
    return Tool(
        name=function.name,
        description=function.description,
        parameters=function.parameters,
        strict=function.strict is True,
        param=param,
    )


def _custom(custom: Custom, param: str) -> Tool:
    grammar = custom.format.grammar
    return Tool(
        name=custom.name,
        description=custom.description,
        custom=True,
        format=CustomFormat(grammar.syntax, grammar.definition) if grammar is not None else None,
        param=param,
    )


def _tool_choice(body: ChatCompletionBody) -> ToolChoice:
    choice = body.function_call if body.functions else body.tool_choice
    match choice:
        case NamedFunction(function=named) | NamedCustom(custom=named):
            return ToolChoice(mode="required", allowed=(named.name,))
        case Named(name=name):
            return ToolChoice(mode="required", allowed=(name,))
        case AllowedToolsChoice(allowed_tools=allowed):
            names = [tool.function.name if tool.type == "function" else tool.custom.name for tool in allowed.tools]
            return ToolChoice(mode=allowed.mode, allowed=tuple(dict.fromkeys(names)))
        case "none" | "auto" | "required":
            return ToolChoice(mode=choice)
