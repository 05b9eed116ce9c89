"""The Responses endpoints behind validated bodies: each makes a turn of the conversation and its tools."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ...principal import Principal
from ...protocol.responses.body import CompactBody, InputTokensBody, ResponseBody, TextConfig
from ...protocol.responses.items import CompactionTrigger
from ...text.output_format import OutputFormat
from ...text.tools import ToolChoice
from ..output_format import format_of_schema
from ..sampling import draw_seed, wishes_of
from ..services import Services
from ..turn import Turn, TurnRequest, count_prompt_tokens
from .answer import Json, response_head
from .conversation import Conversation, gather_conversation
from .live import LiveResponse, Plan
from .numbered import Numbers
from .output import CompactionOutput, ItemOutput, Output
from .toolbox import Toolbox

MAX_SUMMARY_TOKENS = 2048
"""Of a compaction whose client sets no limit: small models may not know when to end."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a response has from the moment it is asked for, and keeps if it is made again."""

    response_id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created_at: int = field(default_factory=lambda: int(time.time()))
    """Unix seconds."""
    seed: int = field(default_factory=draw_seed)
    """Of its sampling, if the request names none."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that can be served."""

    live: LiveResponse
    origin: Origin
    not_offered: Sequence[str]
    """Types of tools that the model does not get, since nobody here runs them."""


@dataclass(frozen=True, slots=True)
class ResponsesHandler:
    """POST /v1/responses, /v1/responses/input_tokens and /v1/responses/compact."""

    services: Services

    async def accept(self, body: ResponseBody, principal: Principal, again: Origin | None = None) -> Accepted:
        """Check a request, gather its history and begin to answer it.

        Args:
            body: of the request.
            principal: whose it is.
            again: of a response that is made again; nobody waits for it to show that it is right.

        Raises:
            ApiError: the request cannot be served as it is.
            EngineDeadError: the worker is gone.
            JobFailedError: the worker refused it at once.
        """
        conversation = await gather_conversation(self.services, body, principal)
        toolbox = Toolbox(body.all_tools, body.tool_choice)
        origin = again or Origin()
        wants_logprobs = "message.output_text.logprobs" in body.include or body.top_logprobs is not None
        wishes = wishes_of(
            body,
            max_tokens=body.max_output_tokens or (MAX_SUMMARY_TOKENS if conversation.compacts else None),
            logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
        )
        request = replace(
            _turn_request(body, origin.response_id, conversation, toolbox, principal),
            sampling=wishes if wishes.seed is not None else replace(wishes, seed=origin.seed),
            stop=body.stop,
            ttl=body.ttl,
            priority=body.priority,
            cache_salt=body.cache_salt,
        )

        def make_output(numbers: Numbers, turn: Turn) -> Output:
            if conversation.compacts:
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
            response_head(body, origin.response_id, origin.created_at),
            conversation.new_items,
            make_output,
            may_shorten=conversation.compacts or body.truncation == "auto",
        )
        live = LiveResponse(plan, self.services)
        await live.start(patiently=again is not None)
        return Accepted(live, origin, toolbox.not_offered)

    async def count(self, body: InputTokensBody, principal: Principal) -> Json:
        """How many tokens a request's prompt has.

        Raises:
            ApiError: the request cannot be served as it is.
            EngineDeadError: the worker is gone.
        """
        conversation = await gather_conversation(self.services, body, principal)
        toolbox = Toolbox(body.all_tools, body.tool_choice)
        request = _turn_request(body, "count", conversation, toolbox, principal)
        return {
            "object": "response.input_tokens",
            "input_tokens": await count_prompt_tokens(self.services, request),
        }

    async def compact(self, body: CompactBody, principal: Principal) -> Json:
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
        live = (await self.accept(asked, principal)).live
        async for _ in live.events():
            pass
        if live.error is not None:
            raise live.error
        return {
            "id": live.response["id"],
            "object": "response.compaction",
            "created_at": live.response["created_at"],
            "output": live.response["output"],
            "usage": live.response["usage"],
        }


def _turn_request(
    body: ResponseBody | InputTokensBody,
    request_id: str,
    conversation: Conversation,
    toolbox: Toolbox,
    principal: Principal,
) -> TurnRequest:
    """What the prompt depends on; a summary is plain text, whatever the conversation was about."""
    return TurnRequest(
        request_id=request_id,
        model=body.model,
        messages=conversation.messages,
        param="input",
        tools=() if conversation.compacts else toolbox.tools,
        tool_choice=ToolChoice() if conversation.compacts else toolbox.choice,
        parallel_tool_calls=body.parallel_tool_calls,
        output_format=None if conversation.compacts else _output_format(body.text),
        reasoning_effort=body.reasoning.effort,
        verbosity=body.text.verbosity,
        style_is_hint=True,  # agents ask every model for it
        principal=principal,
    )


def _output_format(text: TextConfig) -> OutputFormat | None:
    wanted = text.format
    if wanted.type == "json_object":
        return OutputFormat("json_object", "", "text.format")
    return format_of_schema(wanted.schema_, "text.format.schema") if wanted.type == "json_schema" else None
