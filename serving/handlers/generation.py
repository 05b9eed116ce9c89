"""Runs the choices of one request through the engine and yields what is new in each, in the order it comes."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ..engine_client import EngineClient
from ..metrics import Metrics
from .choice import Choice, Delta


@dataclass(frozen=True, slots=True)
class Generation:
    """A checked request, ready to run.

    Attributes:
        request_id: of the answer, such as `chatcmpl-…`.
        model: its name.
        created: Unix seconds.
        choices: in the order of their index; the choices of one prompt are neighbours.
        num_prompt_tokens: of all prompts, each counted once.
        choices_per_prompt: `n`.
        started: `time.monotonic()` at the request's arrival.
    """

    request_id: str
    model: str
    created: int
    choices: Sequence[Choice]
    num_prompt_tokens: int
    choices_per_prompt: int
    started: float

    def usage(self) -> dict[str, object]:
        """OpenAI's usage object, as of now."""
        completion = sum(choice.num_tokens for choice in self.choices)
        n = self.choices_per_prompt
        # The choices of a prompt find each other's work in the cache; what the request found is the least of them.
        cached = sum(
            min(choice.num_cached_tokens for choice in self.choices[first : first + n])
            for first in range(0, len(self.choices), n)
        )
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.num_prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


async def run(generation: Generation, engine: EngineClient, metrics: Metrics) -> AsyncGenerator[Delta]:
    """Run every choice; leaving the iterator cancels those that still run.

    Raises:
        EngineDeadError: the worker is gone.
        JobFailedError: the worker refused or lost a job.
    """
    if len(generation.choices) == 1:
        deltas = _run_choice(generation, generation.choices[0], engine, metrics)
    else:
        deltas = _run_together(generation, engine, metrics)
    async with aclosing(deltas):
        async for delta in deltas:
            yield delta


async def _run_together(generation: Generation, engine: EngineClient, metrics: Metrics) -> AsyncGenerator[Delta]:
    queue: asyncio.Queue[Delta | Exception] = asyncio.Queue()

    async def pump(choice: Choice) -> None:
        try:
            async for delta in _run_choice(generation, choice, engine, metrics):
                queue.put_nowait(delta)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(choice)) for choice in generation.choices]
    try:
        num_running = len(tasks)
        while num_running:
            delta = await queue.get()
            if isinstance(delta, Exception):
                raise delta
            num_running -= delta.finish_reason is not None
            yield delta
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run_choice(
    generation: Generation, choice: Choice, engine: EngineClient, metrics: Metrics
) -> AsyncGenerator[Delta]:
    """One choice's deltas; the last one has a finish reason. Measures it too."""
    model = generation.model
    first = last = 0.0
    reason = "abort"
    delta: Delta | None = None
    try:
        async with aclosing(engine.generate(choice.job)) as outputs:
            async for output in outputs:
                now = time.monotonic()
                if not first:
                    first = now
                    metrics.observe_first_token(model, now - generation.started)
                elif output.token_ids:
                    metrics.observe_gap(model, (now - last) / len(output.token_ids))
                last = now
                if output.timings is not None:
                    metrics.observe_timings(model, output.timings)
                delta = choice.feed(output)
                if choice.finish_reason is not None:
                    reason = choice.finish_reason
                    break
                if delta is not None:
                    yield delta
        # The job is over, or cancelled by now if a stop string ended it: its blocks are free before the client knows.
        if delta is not None:
            yield delta
    except Exception:
        reason = "error"
        raise
    finally:
        num_gaps = choice.num_tokens - 1
        metrics.observe_end(
            model, reason, time.monotonic() - generation.started, (last - first) / num_gaps if num_gaps > 0 else None
        )
