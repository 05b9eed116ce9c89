"""Does work on texts where nobody waits for it: short work on the event loop, the rest in threads."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

INLINE_CHARACTERS = 2048
"""Shorter texts take less than the hop to a thread."""
HEAVY_CHARACTERS = 2**18
"""Longer texts have threads of their own, so that nobody's ordinary prompt waits for them."""
_NUM_HEAVY_THREADS = 2


class TextThreads:
    """The threads of one API process."""

    def __init__(self) -> None:
        self._heavy = ThreadPoolExecutor(_NUM_HEAVY_THREADS, "heavy-texts")

    async def run(self, num_characters: int, work: Callable[[], Result]) -> Result:
        """`work()`, in a thread if its text is long enough to stall other clients."""
        if num_characters <= INLINE_CHARACTERS:
            return work()
        if num_characters <= HEAVY_CHARACTERS:
            return await asyncio.to_thread(work)
        return await self.run_heavy(work)

    async def run_heavy(self, work: Callable[[], Result]) -> Result:
        """`work()`, which takes long whatever the size of its text is."""
        return await asyncio.get_running_loop().run_in_executor(self._heavy, work)
