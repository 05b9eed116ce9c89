"""Notices when a turn is silent for long, so that a protocol can show its client that the connection lives."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ..sse import PAUSE_SECONDS
from .turn_types import PromptProgress, TurnEvent


async def with_pauses(
    batches: AsyncGenerator[list[TurnEvent]], seconds: float = PAUSE_SECONDS
) -> AsyncGenerator[list[TurnEvent]]:
    """The same batches of events, and an empty one whenever `seconds` pass without one before the first token.

    Later the tokens themselves are signs of life, and they come too often to be waited for with a clock.

    Args:
        batches: closed when the iterator is left.
        seconds: between signs of life.
    """
    async with aclosing(batches):
        begun = False
        while not begun:
            coming = asyncio.ensure_future(anext(batches))
            try:
                while not (await asyncio.wait((coming,), timeout=seconds))[0]:
                    yield []
            finally:
                coming.cancel()  # if the client has left
                await asyncio.wait((coming,))
            try:
                events = coming.result()
            except StopAsyncIteration:
                return
            begun = any(not isinstance(event, PromptProgress) for event in events)
            yield events
        async for events in batches:
            yield events
