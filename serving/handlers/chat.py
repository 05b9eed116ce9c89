"""Chat completions: a body to a turn's request, and the turn's events to a message or a stream of deltas."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import orjson

from ..protocol.chat import ChatCompletionBody, ChatMessage
from ..text.chat_template import Message
from .frames import ChunkFrames, usage_body
from .logprobs import chat_logprobs
from .sampling import wishes_of
from .services import Services
from .turn import (
    ChoiceEnd,
    ReasoningDelta,
    TextDelta,
    Turn,
    TurnEvent,
    TurnRequest,
    prepare_turn,
    run_turn,
    run_turn_in_batches,
)
from .watched_text import TokenEntry


@dataclass(slots=True)
class _Answer:
    """A choice's message as it grows."""

    text: str = ""
    reasoning: str = ""
    entries: list[TokenEntry] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class ChatHandler:
    """POST /v1/chat/completions, behind a validated body."""

    services: Services

    async def prepare(self, body: ChatCompletionBody, principal: str) -> Turn:
        """Check a request against its model and render its prompt.

        Raises:
            ApiError: the request cannot be served as it is.
            EngineDeadError: the worker is gone.
        """
        return await prepare_turn(self.services, turn_request(body, principal))

    async def answer(self, turn: Turn, body: ChatCompletionBody) -> dict[str, object]:
        """The whole answer."""
        answers = [_Answer() for _ in range(body.n)]
        async with aclosing(run_turn(turn, self.services)) as events:
            async for event in events:
                match event:
                    case TextDelta():
                        answers[event.index].text += event.text
                        answers[event.index].entries += event.entries
                    case ReasoningDelta():
                        answers[event.index].reasoning += event.text
                    case ChoiceEnd():
                        answers[event.index].finish_reason = event.finish_reason
        table = turn.served.tokenizer.table
        return {
            "id": turn.request.request_id,
            "object": "chat.completion",
            "created": turn.created,
            "model": turn.served.name,
            "choices": [
                {
                    "index": index,
                    "message": {
                        "role": "assistant",
                        "content": answer.text,
                        "refusal": None,
                        **_reasoning(answer.reasoning),
                    },
                    "logprobs": chat_logprobs(answer.entries, table) if body.logprobs else None,
                    "finish_reason": answer.finish_reason,
                }
                for index, answer in enumerate(answers)
            ],
            "usage": usage_body(turn.usage()),
        }

    async def events(self, turn: Turn, body: ChatCompletionBody) -> AsyncGenerator[bytes]:
        """The answer as framed events."""
        table = turn.served.tokenizer.table
        frames = ChunkFrames(
            turn.generation,
            "chat.completion.chunk",
            include_usage=body.stream_options.include_usage,
            continuous_usage=body.stream_options.continuous_usage_stats,
        )
        begun: set[int] = set()

        def frame(event: TurnEvent) -> bytes:
            match event:
                case TextDelta(index=index, text=text, entries=entries):
                    logprobs = chat_logprobs(entries, table) if body.logprobs else None
                    framed = frames.chunk(index, b'"delta":{"content":' + orjson.dumps(text) + b"}", logprobs, None)
                case ReasoningDelta(index=index, text=text):
                    framed = frames.chunk(index, b'"delta":' + orjson.dumps(_reasoning(text)), None, None)
                case ChoiceEnd(index=index, finish_reason=reason):
                    framed = frames.chunk(index, b'"delta":{}', None, reason)
                case _:
                    return b""
            if index not in begun:
                begun.add(index)
                framed = frames.chunk(index, b'"delta":{"role":"assistant","content":""}', None, None) + framed
            return framed

        async with aclosing(run_turn_in_batches(turn, self.services)) as batches:
            async for batch in batches:
                if framed := b"".join(map(frame, batch)):
                    yield framed
        yield frames.end()


def _reasoning(text: str) -> dict[str, str]:
    """Thinking, under the two names that clients read."""
    return {"reasoning_content": text, "reasoning": text} if text else {}


def turn_request(body: ChatCompletionBody, principal: str) -> TurnRequest:
    """What a body asks of the assistant."""
    return TurnRequest(
        request_id=f"chatcmpl-{uuid.uuid4().hex}",
        model=body.model,
        messages=[_template_message(message) for message in body.messages],
        sampling=wishes_of(
            body,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            logprobs=body.top_logprobs if body.logprobs else None,
        ),
        n=body.n,
        stop=body.stop,
        reasoning_effort=body.reasoning_effort,
        enable_thinking=body.enable_thinking,
        template_variables=body.chat_template_kwargs,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=body.continue_final_message,
        principal=principal,
        priority=body.priority,
        cache_salt=body.cache_salt,
    )


def _template_message(message: ChatMessage) -> Message:
    """A message as chat templates expect it: one text, tool arguments as objects."""
    parts = [part.text for part in message.content]
    rendered: Message = {
        # "function" is what the role "tool" was called before; templates know the newer name
        "role": "tool" if message.role == "function" else message.role,
        "content": "\n".join(parts) or message.refusal or "",
    }
    for name in ("name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            rendered[name] = value
    if (reasoning := message.reasoning_content or message.reasoning) is not None:
        rendered["reasoning_content"] = reasoning
    if message.tool_calls:
        rendered["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return rendered


def _arguments(text: str) -> object:
    """Templates print arguments with `tojson`; models do not always write valid JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
