"""The response object: what the request said, as the answer repeats it, and what has become of it."""

from collections.abc import Collection
from typing import Any

from ...errors import ApiError
from ...protocol.responses.body import ResponseBody, TextConfig
from ...protocol.responses.tools import OtherTool, ToolSpec
from ..turn import TurnUsage

Json = dict[str, Any]

_EFFORT_VARIABLES = frozenset({"reasoning_effort", "enable_thinking", "thinking"})
_RETRIED_SOON = 5
"""Seconds that clients are asked to wait if an error does not say."""


def response_head(body: ResponseBody, response_id: str, created_at: int) -> Json:
    """A response object before anything has happened."""
    head = {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": "queued" if body.background else "in_progress",
        "background": body.background,
        "completed_at": None,
        "conversation": {"id": body.conversation.id} if body.conversation else None,
        "error": None,
        "frequency_penalty": body.frequency_penalty,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata,
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls,
        "presence_penalty": body.presence_penalty,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.reasoning.effort, "summary": body.reasoning.shown_summary},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",  # the only one there is, whichever was asked for
        "store": body.store,
        "temperature": body.temperature,
        "text": _text(body.text),
        "tool_choice": _tool_choice(body),
        "tools": [_tool(tool) for tool in body.tools],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": body.truncation,
        "usage": None,
    }
    return head if body.user is None else head | {"user": body.user}  # the one field that may not be null


def effective_style(head: Json, template_variables: Collection[str]) -> Json:
    """`reasoning` and `text` as they are in effect: agents ask every model for a style, and many know none.

    Args:
        head: the response object, with what was asked.
        template_variables: what the model's chat template reads.
    """
    reasoning, text = head["reasoning"], head["text"]
    if reasoning["effort"] != "none" and _EFFORT_VARIABLES.isdisjoint(template_variables):
        reasoning = reasoning | {"effort": None}
    if "verbosity" not in template_variables:
        text = text | {"verbosity": "medium"}
    return {"reasoning": reasoning, "text": text}


def usage_object(usage: TurnUsage, block_size: int) -> Json:
    """OpenAI's usage of a response.

    Args:
        usage: the turn's.
        block_size: of the prefix cache, which keeps whole blocks of a prompt.
    """
    written = usage.prompt_tokens // block_size * block_size - usage.cached_tokens if block_size else 0
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": max(0, written)},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def error_object(error: ApiError) -> Json:
    """The `error` of a failed response, with the codes by which clients decide whether to try again."""
    message = error.message
    if error.status in (429, 503) and "try again in" not in message:
        seconds = error.headers.get("retry-after", str(_RETRIED_SOON))
        message = f"{message.rstrip('.')}. Please try again in {seconds}s."
    if error.status == 429:
        code = "rate_limit_exceeded"
    elif error.status >= 500:
        code = "server_error"
    else:
        code = "context_length_exceeded" if error.code == "context_length_exceeded" else "invalid_prompt"
    return {"code": code, "message": message}


def _text(text: TextConfig) -> Json:
    wanted = text.format
    form: Json = {"type": wanted.type}
    if wanted.type == "json_schema":
        form |= {"name": wanted.name, "schema": wanted.schema_, "strict": wanted.strict}
        if wanted.description:
            form["description"] = wanted.description
    return {"format": form, "verbosity": text.verbosity or "medium"}


def _tool(tool: ToolSpec) -> Json:
    return tool.settings if isinstance(tool, OtherTool) else tool.model_dump()


def _tool_choice(body: ResponseBody) -> Json | str:
    choice = body.tool_choice
    return choice if isinstance(choice, str) else choice.model_dump(exclude_none=True)
