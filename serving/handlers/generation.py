"""Runs the choices of one request through the engine and yields what is new in each, in the order it comes."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from penstock.scheduler.errors import EngineDeadError
from penstock.scheduler.messages import RequestOutput, Submit

from ..errors import JobFailedError
from ..principal import Principal
from .services import Services
from .turn_types import TurnUsage

News = TypeVar("News")
"""What is new in a choice."""
News_co = TypeVar("News_co", covariant=True)


class RunnableChoice(Protocol[News_co]):
    """What a choice is to those who run it; see Choice and TurnChoice."""

    @property
    def index(self) -> int:
        """Its place in the answer."""

    @property
    def job(self) -> Submit:
        """Its job for the engine."""

    @property
    def num_tokens(self) -> int:
        """Generated so far."""

    @property
    def num_reasoning_tokens(self) -> int:
        """Of those, spent on thinking."""

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that came from the prefix cache."""

    @property
    def finish_reason(self) -> str | None:
        """None until it ends."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it, if one did."""

    def feed(self, output: RequestOutput) -> News_co | None:
        """What the engine's output adds; nothing or something empty if there is nothing to send."""


@dataclass(slots=True)
class Guesses:
    """What became of the tokens that speculation guessed, in the jobs that the worker has ended."""

    num_computed: int = 0
    num_right: int = 0


@dataclass(slots=True)
class Pace:
    """When a generation's tokens came, by `time.monotonic()`; 0: they have not."""

    first: float = 0.0
    last: float = 0.0


@dataclass(frozen=True, slots=True)
class Generation(Generic[News]):
    """A checked request, ready to run.

    Attributes:
        request_id: of the answer, such as `chatcmpl-…`.
        model: its name.
        principal: whose it is, and who pays for it.
        created: Unix seconds.
        choices: in the order of their index; the choices of one prompt are neighbours.
        num_prompt_tokens: of all prompts, each counted once.
        choices_per_prompt: `n`.
        started: `time.monotonic()` at the request's arrival.
        pace: when its tokens came, whichever choice they are of.
    """

    request_id: str
    model: str
    principal: Principal
    created: int
    choices: Sequence[RunnableChoice[News]]
    num_prompt_tokens: int
    choices_per_prompt: int
    started: float
    pace: Pace = field(default_factory=Pace)
    guesses: Guesses = field(default_factory=Guesses)

    def usage(self) -> TurnUsage:
        """Tokens as of now."""
        n = self.choices_per_prompt
        # The choices of a prompt find each other's work in the cache; what the request found is the least of them.
        cached = sum(
            min(choice.num_cached_tokens for choice in self.choices[first : first + n])
            for first in range(0, len(self.choices), n)
        )
        return TurnUsage(
            prompt_tokens=self.num_prompt_tokens,
            cached_tokens=cached,
            completion_tokens=sum(choice.num_tokens for choice in self.choices),
            reasoning_tokens=sum(choice.num_reasoning_tokens for choice in self.choices),
            accepted_tokens=self.guesses.num_right,
            rejected_tokens=self.guesses.num_computed - self.guesses.num_right,
        )


async def run(generation: Generation[News], services: Services) -> AsyncGenerator[News]:
    """Run every choice, which the generation's principal pays for; leaving the iterator cancels those that still run.

    Raises:
        ApiError: 429, the principal has reached a limit.
        EngineDeadError: the worker is gone.
        JobFailedError: the worker refused or lost a job.
    """
    await services.meter.admit(generation.principal, generation.num_prompt_tokens)
    try:
        if len(generation.choices) == 1:
            running = _run_choice(generation, generation.choices[0], services)
        else:
            running = _run_together(generation, services)
        async with aclosing(running) as all_news:
            async for news in all_news:
                yield news
    except (EngineDeadError, JobFailedError):
        if not generation.pace.first:
            services.meter.refund(generation.principal, generation.num_prompt_tokens)
        raise


async def _run_together(generation: Generation[News], services: Services) -> AsyncGenerator[News]:
    queue: asyncio.Queue[News | Exception | None] = asyncio.Queue()

    async def pump(choice: RunnableChoice[News]) -> None:
        try:
            async for news in _run_choice(generation, choice, services):
                queue.put_nowait(news)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(choice)) for choice in generation.choices]
    try:
        num_running = len(tasks)
        while num_running:
            news = await queue.get()
            if isinstance(news, Exception):
                raise news
            if news is None:
                num_running -= 1
            else:
                yield news
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run_choice(
    generation: Generation[News], choice: RunnableChoice[News], services: Services
) -> AsyncGenerator[News]:
    """What is new in one choice, until it has a finish reason. Measures it too."""
    model, metrics = generation.model, services.metrics
    observe_gap = metrics.gap_observer(model)
    first = last = 0.0
    reason = "abort"
    news: News | None = None
    try:
        async with aclosing(services.engine.generate(choice.job)) as outputs:
            async for output in outputs:
                if output.token_ids:
                    now = time.monotonic()
                    services.meter.count_output(generation.principal, len(output.token_ids))
                    if not first:
                        first = now
                        generation.pace.first = generation.pace.first or now
                        metrics.observe_first_token(model, now - generation.started)
                    else:
                        observe_gap((now - last) / len(output.token_ids))
                    last = generation.pace.last = now
                if output.timings is not None:
                    metrics.observe_timings(model, output.timings)
                    generation.guesses.num_computed += output.timings.num_draft_tokens
                    generation.guesses.num_right += output.timings.num_accepted_tokens
                news = choice.feed(output)
                if choice.finish_reason is not None:
                    reason = choice.finish_reason
                    break
                if news:
                    yield news
        # The job is over, or cancelled by now if a stop string ended it: its blocks are free before the client knows.
        if news:
            yield news
    except Exception:
        reason = "error"
        raise
    finally:
        num_gaps = choice.num_tokens - 1
        metrics.observe_end(
            model, reason, time.monotonic() - generation.started, (last - first) / num_gaps if num_gaps > 0 else None
        )
