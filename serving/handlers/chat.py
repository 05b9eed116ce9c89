"""Chat completions: a body to a turn, the turn's events to an answer or a stream, and answers kept that shall be."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from ..principal import Principal
from ..protocol.chat import ChatCompletionBody
from ..text.token_table import TokenTable
from .chat_answer import AnswerForm, DeltaFrames, MessageBuilder
from .chat_request import turn_request
from .frames import ChunkFrames, usage_body
from .logprobs import LOGPROB_CHARACTERS, LogprobCount
from .pauses import with_pauses
from .services import Services
from .stored_chats import check_can_keep, keep_completion
from .turn import PromptProgress, Turn, TurnEvent, prepare_turn, run_turn_in_batches
from .turn_types import TextDelta


@dataclass(frozen=True, slots=True)
class ChatHandler:
    """POST /v1/chat/completions, behind a validated body."""

    services: Services

    async def prepare(self, body: ChatCompletionBody, principal: Principal) -> Turn:
        """Check a request against its model and render its prompt.

        Raises:
            ApiError, RequestError: the request cannot be served as it is.
            EngineDeadError: the worker is gone.
        """
        request = turn_request(body, principal)
        if body.store:
            await check_can_keep(self.services.store, body.messages)
        return await prepare_turn(self.services, request)

    async def answer(self, turn: Turn, body: ChatCompletionBody) -> dict[str, object]:
        """The whole answer."""
        builders, count = _builders(body), LogprobCount()

        def whole() -> dict[str, object]:
            return _completion(turn, body, builders)

        async with aclosing(run_turn_in_batches(turn, self.services)) as batches:
            async for batch in batches:
                _add(batch, builders)
                for event in batch:
                    if isinstance(event, TextDelta):
                        count.add(event.entries)
        answer = await self.services.threads.run(LOGPROB_CHARACTERS * count.total, whole)
        await self._keep(turn, body, answer)
        return answer

    async def events(self, turn: Turn, body: ChatCompletionBody) -> AsyncGenerator[bytes]:
        """The answer as framed events."""
        chunks = ChunkFrames(
            turn.generation,
            "chat.completion.chunk",
            include_usage=body.stream_options.include_usage,
            continuous_usage=body.stream_options.continuous_usage_stats,
        )
        deltas = DeltaFrames(chunks, _form(body), turn.served.tokenizer.table)
        builders = _builders(body) if body.store else []
        async with aclosing(with_pauses(run_turn_in_batches(turn, self.services))) as batches:
            async for batch in batches:
                if builders:
                    _add(batch, builders)
                framed = b"".join(map(deltas.frame, batch)) if batch else deltas.sign_of_life()
                if framed:
                    yield framed
        if builders:
            await self._keep(turn, body, _completion(turn, body, builders))
        yield chunks.end()

    async def _keep(self, turn: Turn, body: ChatCompletionBody, answer: dict[str, object]) -> None:
        if body.store:
            await keep_completion(self.services.store, turn.request.principal.id, answer, body.messages, body.metadata)


def _form(body: ChatCompletionBody) -> AnswerForm:
    return AnswerForm(body.logprobs, legacy=bool(body.functions))


def _builders(body: ChatCompletionBody) -> list[MessageBuilder]:
    return [MessageBuilder(index, _form(body)) for index in range(body.n)]


def _add(batch: list[TurnEvent], builders: list[MessageBuilder]) -> None:
    for event in batch:
        if not isinstance(event, PromptProgress):
            builders[event.index].add(event)


def _completion(turn: Turn, body: ChatCompletionBody, builders: list[MessageBuilder]) -> dict[str, object]:
    table: TokenTable = turn.served.tokenizer.table
    answer: dict[str, object] = {
        "id": turn.request.request_id,
        "object": "chat.completion",
        "created": turn.created,
        "model": turn.served.name,
        "choices": [builder.choice(table) for builder in builders],
        "usage": usage_body(turn.usage()),
    }
    return answer if body.service_tier is None else answer | {"service_tier": "default"}
