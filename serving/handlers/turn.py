"""One turn of an assistant, free of any protocol: messages, tools and wishes in; text, reasoning and tool calls out.

Chat completions, Responses, Anthropic's messages and LM Studio's chat are translations of their protocols into a
`TurnRequest` and of its `TurnEvent`s back.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from penstock.scheduler.messages import Submit

from ..text.detokenizer import Detokenizer
from ..text.served_model import ServedModel
from .generation import Generation, run
from .sampling import choice_seed, resolve_sampling, token_room
from .services import Services
from .turn_choice import TurnChoice
from .turn_prompt import render_prompt
from .turn_types import (
    ChoiceEnd,
    FinishReason,
    PromptProgress,
    ReasoningDelta,
    SamplingWishes,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    TurnEvent,
    TurnRequest,
    TurnUsage,
)

__all__ = [
    "ChoiceEnd",
    "FinishReason",
    "PromptProgress",
    "ReasoningDelta",
    "SamplingWishes",
    "TextDelta",
    "ToolCallDelta",
    "ToolCallEnd",
    "ToolCallStart",
    "Turn",
    "TurnEvent",
    "TurnRequest",
    "TurnUsage",
    "count_prompt_tokens",
    "prepare_turn",
    "run_turn",
    "run_turn_in_batches",
]


@dataclass(frozen=True, slots=True)
class Turn:
    """A checked request, ready to run."""

    request: TurnRequest
    served: ServedModel
    generation: Generation[list[TurnEvent]]

    @property
    def created(self) -> int:
        """Unix seconds."""
        return self.generation.created

    @property
    def num_prompt_tokens(self) -> int:
        """Of its one prompt."""
        return self.generation.num_prompt_tokens

    def usage(self) -> TurnUsage:
        """Tokens as of now."""
        return self.generation.usage()


async def prepare_turn(services: Services, request: TurnRequest) -> Turn:
    """Check a request against its model and render its prompt.

    Raises:
        ApiError: the request cannot be served as it is.
        EngineDeadError: the worker is gone.
    """
    started = time.monotonic()
    served, ready = await services.find(request.model, "generate", ttl=request.ttl)
    prompt = await render_prompt(request, served, ready, services.threads)
    sampling = resolve_sampling(
        request.sampling,
        served.defaults,
        ready,
        grammar=prompt.grammar,
        room=token_room(ready, len(prompt.token_ids), request.param, request.context_length),
    )
    shown = prompt.tools.shown_tokens()
    now = time.time()
    choices = [
        TurnChoice(
            index,
            Submit(
                request_id=f"{request.request_id}-{index}",
                model=served.name,
                prompt_token_ids=prompt.token_ids,
                sampling=replace(sampling, seed=choice_seed(sampling.seed, index)),
                arrival_time=now,
                principal=request.principal.id,
                weight=request.principal.weight,
                priority=request.priority,
                cache_salt=request.cache_salt,
                group=request.request_id,
            ),
            Detokenizer(served.tokenizer.table, continues=request.continue_final_message, shown=shown),
            prompt.tools.parser(prompt.thinking),
            request.stop,
            prompt.tools.callable,
            prompt.tools.max_calls,
        )
        for index in range(request.n)
    ]
    generation = Generation(
        request.request_id,
        served.name,
        request.principal,
        int(now),
        choices,
        len(prompt.token_ids),
        request.n,
        started,
    )
    return Turn(request, served, generation)


async def run_turn(turn: Turn, services: Services) -> AsyncGenerator[TurnEvent]:
    """Run every choice; leaving the iterator cancels those that still run. Each choice ends with a ChoiceEnd.

    Raises:
        EngineDeadError: the worker is gone.
        JobFailedError: the worker refused or lost a job.
    """
    async with aclosing(run_turn_in_batches(turn, services)) as batches:
        async for events in batches:
            for event in events:
                yield event


def run_turn_in_batches(turn: Turn, services: Services) -> AsyncGenerator[list[TurnEvent]]:
    """The same, with the events that come together in one list, for one write to the client."""
    return run(turn.generation, services)


async def count_prompt_tokens(services: Services, request: TurnRequest) -> int:
    """Tokens of a request's prompt, without a job for the engine.

    Raises:
        ApiError: the request cannot be served as it is.
        EngineDeadError: the worker is gone.
    """
    served, ready = await services.find(request.model, "generate", ttl=request.ttl)
    return len((await render_prompt(request, served, ready, services.threads)).token_ids)
