"""The Responses endpoints behind validated bodies: what was said before is gathered, checked and made a turn."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ApiError
from ...protocol.responses.body import CompactBody, InputTokensBody, ResponseBody, TextConfig
from ...protocol.responses.items import ITEMS, AdditionalToolsItem, CompactionTrigger, Item, ItemReference
from ...text.output_format import OutputFormat
from ..output_format import format_of_schema
from ..sampling import wishes_of
from ..services import Services
from ..turn import Turn, TurnRequest, count_prompt_tokens
from .answer import Json, response_head
from .live import LiveResponse, Plan
from .messages import SUMMARY_REQUEST, messages_of
from .numbered import Numbers
from .output import CompactionOutput, ItemOutput, Output
from .stored_items import stored_item
from .toolbox import Toolbox


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that can be served."""

    live: LiveResponse
    not_offered: Sequence[str]
    """Types of tools that the model does not get, since nobody here runs them."""


@dataclass(frozen=True, slots=True)
class ResponsesHandler:
    """POST /v1/responses, /v1/responses/input_tokens and /v1/responses/compact."""

    services: Services

    async def accept(self, body: ResponseBody, principal: str) -> Accepted:
        """Check a request, gather its history and begin to answer it.

        Raises:
            ApiError: the request cannot be served as it is.
            EngineDeadError: the worker is gone.
            JobFailedError: the worker refused it at once.
        """
        response_id = f"resp_{uuid.uuid4().hex}"
        history, items = await self._items(body, principal)
        toolbox = Toolbox(body.all_tools, body.tool_choice)
        messages = messages_of(body.instructions, history, items, all_thinking=body.reasoning.context != "current_turn")
        compacts = bool(items) and isinstance(items[-1], CompactionTrigger)
        if compacts:
            messages.append({"role": "user", "content": SUMMARY_REQUEST})
        _check_not_empty(messages)
        wants_logprobs = "message.output_text.logprobs" in body.include or body.top_logprobs is not None
        request = TurnRequest(
            request_id=response_id,
            model=body.model,
            messages=messages,
            param="input",
            tools=() if compacts else toolbox.tools,
            tool_choice=toolbox.choice,
            parallel_tool_calls=body.parallel_tool_calls,
            output_format=None if compacts else _output_format(body.text),
            sampling=wishes_of(
                body,
                max_tokens=body.max_output_tokens,
                logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
            ),
            stop=body.stop,
            reasoning_effort=body.reasoning.effort,
            thinking_is_hint=True,
            ttl=body.ttl,
            principal=principal,
            priority=body.priority,
            cache_salt=body.cache_salt,
        )

        def make_output(numbers: Numbers, turn: Turn) -> Output:
            if compacts:
                return CompactionOutput(numbers)
            return ItemOutput(
                numbers,
                toolbox,
                turn.served.tokenizer.table,
                summarises=body.reasoning.shown_summary is not None,
                seals="reasoning.encrypted_content" in body.include,
            )

        plan = Plan(
            request,
            response_head(body, response_id, int(time.time())),
            [stored_item(item) for item in items if not isinstance(item, AdditionalToolsItem | CompactionTrigger)],
            make_output,
            may_shorten=compacts or body.truncation == "auto",
        )
        live = LiveResponse(plan, self.services)
        await live.start()
        return Accepted(live, toolbox.not_offered)

    async def count(self, body: InputTokensBody, principal: str) -> Json:
        """How many tokens a request's prompt has.

        Raises:
            ApiError: the request cannot be served as it is.
            EngineDeadError: the worker is gone.
        """
        history, items = await self._items(body, principal)
        toolbox = Toolbox(body.all_tools, body.tool_choice)
        messages = messages_of(body.instructions, history, items, all_thinking=body.reasoning.context != "current_turn")
        _check_not_empty(messages)
        request = TurnRequest(
            request_id="count",
            model=body.model,
            messages=messages,
            param="input",
            tools=toolbox.tools,
            tool_choice=toolbox.choice,
            parallel_tool_calls=body.parallel_tool_calls,
            output_format=_output_format(body.text),
            reasoning_effort=body.reasoning.effort,
            thinking_is_hint=True,
            principal=principal,
        )
        return {
            "object": "response.input_tokens",
            "input_tokens": await count_prompt_tokens(self.services, request),
        }

    async def compact(self, body: CompactBody, principal: str) -> Json:
        """The conversation as one compaction item, which holds the model's own summary of it.

        Raises:
            ApiError: the request cannot be served as it is.
            EngineDeadError: the worker is gone.
            JobFailedError: the worker refused or lost the job.
        """
        asked = ResponseBody(
            model=body.model,
            instructions=body.instructions,
            previous_response_id=body.previous_response_id,
            input=[*body.input, CompactionTrigger(type="compaction_trigger")],
            store=False,
        )
        accepted = await self.accept(asked, principal)
        async for _ in accepted.live.events():
            pass
        if accepted.live.error is not None:
            raise accepted.live.error
        response = accepted.live.response
        return {
            "id": response["id"],
            "object": "response.compaction",
            "created_at": response["created_at"],
            "output": response["output"],
            "usage": response["usage"],
        }

    async def _items(
        self, body: "ResponseBody | InputTokensBody | CompactBody", principal: str
    ) -> tuple[list[Item], list[Item]]:
        """What was before, and the request's own items with references resolved.

        Raises:
            ApiError: an answer, conversation or item that is not stored.
        """
        store = self.services.store
        stored: list[dict[str, Any]] = []
        if body.previous_response_id is not None:
            stored = await store.responses.history(principal, body.previous_response_id)
        elif not isinstance(body, CompactBody) and body.conversation is not None:
            stored = await store.conversations.items(principal, body.conversation.id)
        ids = [item.id for item in body.input if isinstance(item, ItemReference)]
        found = await store.responses.find_items(principal, ids)
        items: list[Item] = []
        for index, item in enumerate(body.input):
            if isinstance(item, ItemReference):
                items += ITEMS.validate_python([_find(found, item.id, f"input.{index}")])
            else:
                items.append(item)
        return ITEMS.validate_python(stored), items


def _find(found: dict[str, Json], item_id: str, param: str) -> Json:
    if item_id not in found:
        raise ApiError(
            f"Item with id '{item_id}' not found. It may have been deleted, have expired, or never been stored: "
            "answers with store: false are not. Send the item itself.",
            status=404,
            code="item_not_found",
            param=param,
        )
    return found[item_id]


def _check_not_empty(messages: Sequence[object]) -> None:
    if not messages:
        raise ApiError(
            "Missing required parameter: 'input'. Send a text or items, or a previous_response_id or conversation.",
            code="missing_required_parameter",
            param="input",
        )


def _output_format(text: TextConfig) -> OutputFormat | None:
    wanted = text.format
    if wanted.type == "json_object":
        return OutputFormat("json_object", "", "text.format")
    return format_of_schema(wanted.schema_, "text.format.schema") if wanted.type == "json_schema" else None
