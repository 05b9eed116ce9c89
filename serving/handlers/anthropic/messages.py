"""POST /v1/messages and /v1/messages/count_tokens: turns of the assistant in Anthropic's form."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import orjson

from ...principal import Principal
from ...protocol.anthropic.messages import MessagesBody, PromptBody
from ...sse import typed_event
from ..pauses import with_pauses
from ..services import Services
from ..turn import Turn, count_prompt_tokens, prepare_turn, run_turn_in_batches
from ..turn_types import ChoiceEnd, TurnUsage
from .content import PING, Content, ContentEvents
from .request import turn_request


@dataclass(frozen=True, slots=True)
class MessagesHandler:
    """The two endpoints, behind validated bodies."""

    services: Services

    async def prepare(self, body: MessagesBody, principal: Principal) -> Turn:
        """Check a request against its model and render its prompt.

        Raises:
            ApiError: the request cannot be served as it is.
            EngineDeadError: the worker is gone.
        """
        return await prepare_turn(self.services, turn_request(body, f"msg_{uuid.uuid4().hex}", principal))

    async def count_tokens(self, body: PromptBody, principal: Principal) -> bytes:
        """The number of tokens that a request's prompt has; raises as `prepare` does."""
        request = turn_request(body, f"msg_{uuid.uuid4().hex}", principal)
        return orjson.dumps({"input_tokens": await count_prompt_tokens(self.services, request)})

    async def answer(self, turn: Turn, body: MessagesBody) -> bytes:
        """The whole message."""
        content = Content(shows_thinking=_shows_thinking(body))
        async with aclosing(run_turn_in_batches(turn, self.services)) as batches:
            async for events in batches:
                for event in events:
                    content.feed(event)
        usage = turn.usage()
        message = _message(turn, body, usage) | {"content": content.blocks} | _stop(content.end, body, usage)
        return orjson.dumps(message)

    async def events(self, turn: Turn, body: MessagesBody) -> AsyncGenerator[bytes]:
        """The message as framed events; they begin with a sign of life, so that a refusal can still be an answer."""
        content = ContentEvents(shows_thinking=_shows_thinking(body))
        begun = False
        async with aclosing(with_pauses(run_turn_in_batches(turn, self.services))) as batches:
            async for events in batches:
                framed = b"".join(map(content.feed, events)) if events else PING
                if not begun:
                    begun = True
                    framed = _start(turn, body) + framed
                if framed:
                    yield framed
        usage = turn.usage()
        delta = {"type": "message_delta", "delta": _stop(content.end, body, usage), "usage": _usage(usage)}
        yield typed_event(delta | _context_management(body)) + typed_event({"type": "message_stop"})


def _start(turn: Turn, body: MessagesBody) -> bytes:
    return typed_event({"type": "message_start", "message": _message(turn, body, turn.usage())}) + PING


def _message(turn: Turn, body: MessagesBody, usage: TurnUsage) -> dict[str, object]:
    return {
        "id": turn.request.request_id,
        "type": "message",
        "role": "assistant",
        "model": turn.served.name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "usage": _usage(usage) | {"service_tier": "standard"},
        **_context_management(body),
    }


def _usage(usage: TurnUsage) -> dict[str, object]:
    """As Anthropic counts: the three kinds of input add up to the prompt."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _stop(end: ChoiceEnd | None, body: MessagesBody, usage: TurnUsage) -> dict[str, object]:
    assert end is not None, "a turn ends its choice or raises"
    reason = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}[end.finish_reason]
    if end.stop_string is not None:
        reason = "stop_sequence"
    elif end.finish_reason == "length" and usage.completion_tokens < body.max_tokens:
        reason = "model_context_window_exceeded"
    return {"stop_reason": reason, "stop_sequence": end.stop_string, "stop_details": None}


def _context_management(body: MessagesBody) -> dict[str, object]:
    return {} if body.context_management is None else {"context_management": {"applied_edits": []}}


def _shows_thinking(body: MessagesBody) -> bool:
    return body.thinking is None or body.thinking.display == "summarized"
