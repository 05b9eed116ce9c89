"""Signs of life from a silent turn."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from penstock.serving.handlers.pauses import with_pauses
from penstock.serving.handlers.turn_types import PromptProgress, TextDelta, TurnEvent

Batches = AsyncGenerator[list[TurnEvent]]


class Turn:
    """A turn whose batches the test lets go one by one."""

    def __init__(self, *batches: list[TurnEvent]) -> None:
        self.batches = batches
        self.go = asyncio.Semaphore(0)
        self.closed = False

    async def run(self) -> Batches:
        try:
            for batch in self.batches:
                await self.go.acquire()
                yield batch
        finally:
            self.closed = True


async def test_silence_before_the_first_token_is_shown_and_later_silence_is_not() -> None:
    progress, hello, world = PromptProgress(1, 2), TextDelta(0, "hello"), TextDelta(0, "world")
    turn = Turn([progress], [hello], [world])
    seen = with_pauses(turn.run(), seconds=0.001)
    assert await anext(seen) == [] and await anext(seen) == []
    turn.go.release()
    while not (batch := await anext(seen)):
        pass
    assert batch == [progress]
    assert await anext(seen) == []
    turn.go.release()
    while not (batch := await anext(seen)):
        pass
    assert batch == [hello]
    last = asyncio.ensure_future(anext(seen))
    await asyncio.sleep(0.02)
    assert not last.done()
    turn.go.release()
    assert await last == [world]
    assert [batch async for batch in seen] == [] and turn.closed


async def test_leaving_in_the_silence_closes_the_turn() -> None:
    turn = Turn([TextDelta(0, "never")])
    seen = with_pauses(turn.run(), seconds=0.001)
    assert await anext(seen) == []
    await seen.aclose()
    assert turn.closed


async def test_a_turn_that_fails_and_one_that_is_empty() -> None:
    async def fail() -> Batches:
        raise RuntimeError("the worker is gone")
        yield []

    with pytest.raises(RuntimeError, match="the worker is gone"):
        await anext(with_pauses(fail()))
    assert [batch async for batch in with_pauses(Turn().run())] == []
