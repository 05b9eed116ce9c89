"""An Anthropic request as a turn of the assistant."""

import json
from collections.abc import Sequence
from typing import Any

import orjson

from ...principal import Principal
from ...protocol.anthropic.messages import MessagesBody, PromptBody
from ...protocol.anthropic.tools import ClientTool
from ...text.output_format import OutputFormat
from ...text.tools import Tool, ToolChoice
from ..turn_types import SamplingWishes, TurnRequest
from .prompt import template_messages


def turn_request(body: PromptBody, request_id: str, principal: Principal) -> TurnRequest:
    """What a body asks of the assistant."""
    choice = body.tool_choice
    last = body.messages[-1]
    continues = last.role == "assistant" and any(block.type == "text" for block in last.content)
    return TurnRequest(
        request_id=request_id,
        model=body.model,
        messages=template_messages(body.system, body.messages),
        tools=_tools(body.tools),
        tool_choice=_tool_choice(body),
        parallel_tool_calls=not (choice is not None and choice.disable_parallel_tool_use),
        output_format=_output_format(body),
        reasoning_effort=body.output_config.effort,
        enable_thinking=_enable_thinking(body),
        style_is_hint=True,  # agents ask every model for it
        add_generation_prompt=not continues,
        continue_final_message=continues,
        ttl=body.ttl,
        principal=principal,
        **(_generation(body) if isinstance(body, MessagesBody) else {}),
    )


def not_offered(body: PromptBody) -> list[str]:
    """Names of the tools that no model here is offered."""
    return [str(tool.get("name") or tool["type"]) for tool in body.tools if isinstance(tool, dict)]


def _generation(body: MessagesBody) -> dict[str, Any]:
    return {
        "stop": body.stop_sequences,
        "sampling": SamplingWishes(
            max_tokens=body.max_tokens, temperature=body.temperature, top_p=body.top_p, top_k=body.top_k
        ),
    }


def _tools(tools: Sequence[ClientTool | dict[str, Any]]) -> list[Tool]:
    return [
        Tool(
            name=tool.name,
            description=_description(tool),
            parameters=tool.input_schema,
            strict=tool.strict,
            param=f"tools.{index}.input_schema",
        )
        for index, tool in enumerate(tools)
        if isinstance(tool, ClientTool)
    ]


def _description(tool: ClientTool) -> str:
    examples = [json.dumps(example, ensure_ascii=False) for example in tool.input_examples]
    return "\n".join([tool.description, "Examples of input:", *examples]) if examples else tool.description


def _tool_choice(body: PromptBody) -> ToolChoice:
    match body.tool_choice:
        case None:
            return ToolChoice()
        case choice if choice.type == "tool":
            return ToolChoice(mode="required", allowed=(choice.name,))
        case choice if choice.type == "any":
            return ToolChoice(mode="required")
        case choice:
            return ToolChoice(mode="none" if choice.type == "none" else "auto")


def _output_format(body: PromptBody) -> OutputFormat | None:
    for wanted, param in (
        (body.output_config.format, "output_config.format.schema"),
        (body.output_format, "output_format.schema"),
    ):
        if wanted is not None:
            return OutputFormat("json_schema", orjson.dumps(wanted.schema_).decode(), param)
    return None


def _enable_thinking(body: PromptBody) -> bool | None:
    """Anthropic's models do not think unless they are asked to; `adaptive` leaves it to the model."""
    if body.thinking is None:
        return None if body.output_config.effort else False
    return {"enabled": True, "disabled": False, "adaptive": None, "between_tools": None}[body.thinking.type]
