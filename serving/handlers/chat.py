"""Chat completions: messages to a prompt, and the choices' texts to a message or a stream of deltas."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import orjson

from penstock.scheduler.messages import Submit

from ..errors import ApiError
from ..protocol.chat import ChatCompletionBody, ChatMessage
from ..text.chat_template import ChatTemplate, Message, TemplateRefusalError
from ..text.served_model import ServedModel
from ..text.tokenizer import off_loop
from .choice import Choice, Delta, TokenEntry
from .frames import ChunkFrames
from .generation import Generation, run
from .logprobs import chat_logprobs
from .sampling import NO_LIMIT, choice_seed, resolve_sampling, token_limit, token_room
from .services import Services


@dataclass(frozen=True, slots=True)
class ChatHandler:
    """POST /v1/chat/completions, behind a validated body."""

    services: Services

    async def prepare(self, body: ChatCompletionBody) -> Generation:
        """Check a request against its model and render its prompt.

        Raises:
            ApiError: the request cannot be served as it is.
            EngineDeadError: the worker is gone.
        """
        started = time.monotonic()
        served, ready = await self.services.find(body.model, "generate")
        prompt = await _prompt(body, served, token_limit(ready))
        sampling = resolve_sampling(
            body,
            served.defaults,
            ready,
            wanted=body.max_completion_tokens or body.max_tokens or NO_LIMIT,
            room=token_room(ready, len(prompt), "messages"),
            logprobs=body.top_logprobs if body.logprobs else None,
        )
        request_id = f"chatcmpl-{uuid.uuid4().hex}"
        now = time.time()
        choices = [
            Choice(
                index,
                Submit(
                    request_id=f"{request_id}-{index}",
                    model=served.name,
                    prompt_token_ids=prompt,
                    sampling=replace(sampling, seed=choice_seed(sampling.seed, index)),
                    arrival_time=now,
                    priority=body.priority,
                    cache_salt=body.cache_salt,
                ),
                served.tokenizer.table,
                body.stop,
                continues=body.continue_final_message,
            )
            for index in range(body.n)
        ]
        return Generation(request_id, served.name, int(now), choices, len(prompt), body.n, started)

    async def answer(self, generation: Generation, body: ChatCompletionBody) -> dict[str, object]:
        """The whole answer."""
        texts = [""] * len(generation.choices)
        entries: list[list[TokenEntry]] = [[] for _ in generation.choices]
        async with aclosing(run(generation, self.services.engine, self.services.metrics)) as deltas:
            async for delta in deltas:
                texts[delta.index] += delta.text
                entries[delta.index] += delta.entries
        table = self.services.shelf[generation.model].tokenizer.table
        return {
            "id": generation.request_id,
            "object": "chat.completion",
            "created": generation.created,
            "model": generation.model,
            "choices": [
                {
                    "index": choice.index,
                    "message": {"role": "assistant", "content": texts[choice.index], "refusal": None},
                    "logprobs": chat_logprobs(entries[choice.index], table) if body.logprobs else None,
                    "finish_reason": choice.finish_reason,
                }
                for choice in generation.choices
            ],
            "usage": generation.usage(),
        }

    async def events(self, generation: Generation, body: ChatCompletionBody) -> AsyncGenerator[bytes]:
        """The answer as framed events."""
        table = self.services.shelf[generation.model].tokenizer.table
        frames = ChunkFrames(
            generation,
            "chat.completion.chunk",
            include_usage=body.stream_options.include_usage,
            continuous_usage=body.stream_options.continuous_usage_stats,
        )
        begun: set[int] = set()

        def frame(delta: Delta) -> bytes:
            framed = b""
            if delta.index not in begun:
                begun.add(delta.index)
                framed = frames.chunk(delta.index, b'"delta":{"role":"assistant","content":""}', None, None)
            if delta.text or delta.entries:
                logprobs = chat_logprobs(delta.entries, table) if body.logprobs else None
                content = b'"delta":{"content":' + orjson.dumps(delta.text) + b"}"
                framed += frames.chunk(delta.index, content, logprobs, None)
            if delta.finish_reason is not None:
                framed += frames.chunk(delta.index, b'"delta":{}', None, delta.finish_reason)
            return framed

        async with aclosing(run(generation, self.services.engine, self.services.metrics)) as deltas:
            async for delta in deltas:
                yield frame(delta)
        yield frames.end()


async def _prompt(body: ChatCompletionBody, served: ServedModel, limit: int) -> list[int]:
    template = served.chat_template
    if template is None:
        raise ApiError(
            f"The model '{served.name}' has no chat template. Use /v1/completions with a finished prompt.",
            code="model_not_supported",
            param="model",
        )
    messages = [_template_message(message) for message in body.messages]
    variables = _template_variables(body, served.name, template)

    def render_and_encode() -> list[int]:
        text = template.render(
            messages,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=body.continue_final_message,
            variables=variables,
        )
        # The template has written the special tokens; the tokenizer would write some of them again.
        return served.tokenizer.encode(text, limit, add_special_tokens=False)

    try:
        prompt = await off_loop(sum(len(message["content"]) for message in messages), render_and_encode)
    except TemplateRefusalError as error:
        raise ApiError(f"Invalid 'messages': {error}.", code="invalid_value", param="messages") from error
    if not prompt:
        raise ApiError(
            "Invalid 'messages': they render to an empty prompt. Send some text.", code="empty_array", param="messages"
        )
    return prompt


def _template_variables(body: ChatCompletionBody, model: str, template: ChatTemplate) -> dict[str, Any]:
    """The variables that a request sets in its chat template.

    One that the template does not read would change nothing, and the client would believe it had. Agents send
    reasoning_effort only if somebody has configured it, so they can be told. "none" asks models without a switch for
    what they do anyway, and turns the switch off where it has the other name.

    Raises:
        ApiError: unsupported_parameter, the template does not read a variable.
    """
    variables = dict(body.chat_template_kwargs)
    wanted = {f"chat_template_kwargs.{name}": name for name in variables}
    for name in ("reasoning_effort", "enable_thinking"):
        if (value := getattr(body, name)) is not None:
            variables.setdefault(name, value)  # the more explicit place wins
            wanted.setdefault(name, name)
    if body.reasoning_effort == "none" and "reasoning_effort" not in template.variables:
        del wanted["reasoning_effort"]
        if "enable_thinking" in template.variables:
            variables.setdefault("enable_thinking", False)
    for param, name in wanted.items():
        if name not in template.variables:
            known = ", ".join(sorted(template.variables)) or "none"
            raise ApiError(
                f"Unsupported '{param}': the chat template of '{model}' has no variable {name}, so it would change "
                f"nothing. Leave it out. Variables of that template: {known}.",
                code="unsupported_parameter",
                param=param,
            )
    return variables


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
