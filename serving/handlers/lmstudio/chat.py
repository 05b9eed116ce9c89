"""POST /api/v1/chat: a chat that the server remembers, as an object or as LM Studio's stream of events."""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ...error_forms import LM_STUDIO
from ...errors import FORESEEN, ApiError, translate
from ...principal import Principal
from ...protocol.lmstudio.chat import NativeChatBody
from ...shelf.card import ModelCard
from ...sse import typed_event
from ..pauses import with_pauses
from ..services import Services
from ..turn import Turn, prepare_turn, run_turn_in_batches
from ..turn_types import ChoiceEnd, PromptProgress, ReasoningDelta, SamplingWishes, TextDelta, TurnEvent, TurnRequest
from .memory import ChatMemory
from .models import check_context_length
from .stats import stats_v1

_log = logging.getLogger(__name__)
Event = dict[str, Any]
_ANNOUNCEMENTS = frozenset({"chat.start", "prompt_processing.start"})
"""Sent with what follows them: a job that is refused at once is answered with a status."""


class NativeChat:
    """One request and its answer.

    Args:
        services: the API process's parts.
        body: validated.
        principal: whose request it is.
    """

    def __init__(self, services: Services, body: NativeChatBody, principal: Principal) -> None:
        self._services = services
        self._body = body
        self._principal = principal
        self._response_id = f"resp_{uuid.uuid4().hex}"
        self._memory = ChatMemory(services.store, body, principal)
        self._turn: Turn | None = None
        self._model = body.model
        self._load_seconds: float | None = None
        self._output: list[tuple[str, list[str]]] = []  # kind, pieces of its text
        self._num_computed_tokens = 0
        self._remembered = False

    async def answer(self) -> Event:
        """The whole answer.

        Raises:
            ApiError: the request cannot be served as it is.
            EngineDeadError: the worker is gone.
            JobFailedError: the worker refused or lost the job.
        """
        async with aclosing(self._events()) as events:
            async for _ in events:
                pass
        return self._result()

    async def stream(self) -> AsyncGenerator[bytes]:
        """The answer as framed events. What goes wrong before the first is raised; later it is an event, as all is."""
        begun = False
        held = b""
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    held += typed_event(event)
                    if event["type"] not in _ANNOUNCEMENTS:
                        begun = True
                        yield held
                        held = b""
        except Exception as error:
            if not begun:
                raise
            if not isinstance(error, FORESEEN):
                _log.exception("internal error in the stream of %s", self._response_id)
            yield typed_event({"type": "error", "error": LM_STUDIO.details(translate(error))})
        yield typed_event({"type": "chat.end", "result": self._result()})

    def _result(self) -> Event:
        """The answer's body, as of now."""
        result: Event = {
            "model_instance_id": self._model,
            "output": [{"type": kind, "content": "".join(pieces)} for kind, pieces in self._output],
        }
        if self._turn is not None:
            result["stats"] = stats_v1(self._turn.generation, self._load_seconds)
        if self._remembered:
            result["response_id"] = self._response_id
        return result

    # ------------------------------------------------------------------------------------------------------- its events

    async def _events(self) -> AsyncGenerator[Event]:
        card = await self._services.registry.find(self._body.model, "generate")
        if card is None:
            raise self._services.unknown(self._body.model)
        self._model = card.name
        check_context_length(card, self._services.engine.models.get(card.name), self._body.context_length)
        request = await self._request()
        if card.kind == "generate" and card.name not in self._services.engine.models:
            yield self._named("chat.start")
            async with aclosing(self._load(card, request)) as events:
                async for event in events:
                    yield event
        else:
            self._turn = await self._prepare(request)
            yield self._named("chat.start")
        assert self._turn is not None
        async with aclosing(self._run(self._turn)) as events:
            async for event in events:
                yield event
        if self._body.store:
            await self._memory.keep(self._response_id, self._turn, self._output)
            self._remembered = True

    async def _load(self, card: ModelCard, request: TurnRequest) -> AsyncGenerator[Event]:
        """Prepare the turn, whose model is not in memory yet."""
        preparing = asyncio.create_task(self._prepare(request))
        try:
            yield self._named("model_load.start")
            async with aclosing(self._services.load_progress(card.name, preparing)) as steps:
                async for step in steps:
                    yield self._named("model_load.progress", progress=round(step.fraction, 4))
            self._turn = await preparing
        finally:
            preparing.cancel()
            await asyncio.wait((preparing,))
        residents = {resident.ready.name: resident for resident in self._services.lifecycle.residents()}
        self._load_seconds = residents[card.name].load_seconds if card.name in residents else 0.0
        yield self._named("model_load.end", load_time_seconds=round(self._load_seconds, 3))

    async def _run(self, turn: Turn) -> AsyncGenerator[Event]:
        """Run the turn. Whatever follows the prompt begins and ends with an event of its own."""
        yield {"type": "prompt_processing.start"}
        open_part = "prompt_processing"
        async with aclosing(with_pauses(run_turn_in_batches(turn, self._services))) as batches:
            async for batch in batches:
                for event in batch or [PromptProgress(self._num_computed_tokens, turn.num_prompt_tokens)]:
                    if isinstance(event, PromptProgress) and open_part != "prompt_processing":
                        continue  # the prompt is computed again after a preemption, which is no news
                    part, framed = self._translate(event, turn)
                    if part != open_part:
                        yield {"type": f"{open_part}.end"}
                        open_part = part
                        if part:
                            self._output.append((part, []))
                            yield {"type": f"{part}.start"}
                    if framed is not None:
                        if part in ("reasoning", "message"):
                            self._output[-1][1].append(framed["content"])
                        yield framed

    def _translate(self, event: TurnEvent, turn: Turn) -> tuple[str, Event | None]:
        """The part of the answer that an event belongs to ("" after the last), and the event for the client."""
        match event:
            case TextDelta(text=text):
                return "message", {"type": "message.delta", "content": text}
            case ReasoningDelta(text=text):
                return "reasoning", {"type": "reasoning.delta", "content": text}
            case PromptProgress(num_computed_tokens=num_computed):
                self._num_computed_tokens = num_computed
                progress = round(min(1.0, num_computed / turn.num_prompt_tokens), 4)
                return "prompt_processing", {"type": "prompt_processing.progress", "progress": progress}
            case ChoiceEnd():
                return "", None
            case _:
                raise AssertionError("a turn without tools calls none")

    def _named(self, kind: str, **fields: object) -> Event:
        return {"type": kind, "model_instance_id": self._model, **fields}

    # ------------------------------------------------------------------------------------------------------- its turn

    async def _request(self) -> TurnRequest:
        body = self._body
        switch = {"off": False, "on": True}.get(body.reasoning or "")
        return TurnRequest(
            request_id=self._response_id,
            model=body.model,
            messages=await self._memory.messages(),
            param="input",
            sampling=SamplingWishes(
                max_tokens=body.max_output_tokens,
                temperature=body.temperature,
                top_p=body.top_p,
                top_k=body.top_k,
                min_p=body.min_p,
                repetition_penalty=body.repeat_penalty,
            ),
            enable_thinking=switch,
            reasoning_effort=body.reasoning if switch is None else None,
            context_length=body.context_length,
            ttl=body.ttl,
            principal=self._principal,
        )

    async def _prepare(self, request: TurnRequest) -> Turn:
        try:
            return await prepare_turn(self._services, request)
        except ApiError as error:
            if error.param in ("enable_thinking", "reasoning_effort"):
                raise ApiError(
                    f"Unsupported 'reasoning': '{self._model}' cannot be told whether or how long to think. "
                    "Leave it out.",
                    code="unsupported_parameter",
                    param="reasoning",
                ) from error
            raise
