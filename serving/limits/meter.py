"""Counts what the keys of this process's requests use, and asks the ledger of all processes what they still may.

Only a key with limits is asked about, in the ledger's thread: a transaction of another process or a slow disk holds up
nobody else. What is known afterwards only, such as the tokens of an answer, is added up here and written once a second.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ..principal import Limits, Principal
from .ledger import Ledger
from .refusals import limit_reached
from .standing import NOTHING, Refusal, Standing, Usage
from .turns import Turns

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_NO_LIMITS = Limits()

WRITE_SECONDS = 1.0
"""What a process that is killed may forget to charge."""
_COMPLAINT_SECONDS = 60.0
_SHARE_OF_NEWEST = 0.2
"""In the mean duration of a key's requests."""
_FIRST_GUESS = 1.0
"""Seconds that a request takes, while none has ended."""


@dataclass(slots=True)
class _Unwritten:
    """What a key has used and the ledger does not know yet."""

    principal: Principal
    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0

    def usage(self) -> Usage:
        return Usage(self.num_requests, self.num_prompt_tokens, self.num_output_tokens)


class Visit:
    """A request that is being answered; it holds a place among its key's requests in flight until all have let go."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self._num_holders = 1

    def hold(self) -> None:
        """Keep the place beyond the answer, until one more `release`."""
        self._num_holders += 1

    def release(self, *_: object) -> None:
        """Let go; the last one ends the visit. Takes any arguments, to be a callback."""
        self._num_holders -= 1
        if not self._num_holders:
            self._end()


class Meter:
    """One process's end of the ledger. Keys give principals names: whoever has none is not counted.

    If the ledger cannot be used, for want of disk space perhaps, everybody is let in and the log says so: an operator
    would rather miss a limit than have the server stand still.

    Args:
        ledger: the accounts, which only this object uses and which it closes.

    Attributes:
        on_refusal: hears the name of the limit that each refused request has reached.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.on_refusal: Callable[[str], None] = lambda limit: None
        self._ledger = ledger
        self._turns = Turns()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._unwritten: dict[str, _Unwritten] = {}
        self._standings: dict[str, Standing] = {}
        self._mean_seconds: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing: set[asyncio.Future[None]] = set()
        self._next_complaint = 0.0

    async def enter(self, principal: Principal) -> Visit | None:
        """Begin a request of a key.

        Returns:
            What is to be released at its end; None: nothing is.

        Raises:
            ApiError: 429, the key has reached a limit.
        """
        if principal.limits == _NO_LIMITS:
            if principal.name:
                self._account(principal).num_requests += 1
            return None
        visit = Visit(partial(self._leave, principal, time.monotonic()))
        answer = await self._ask(principal, self._ledger.enter, visit.release)
        if answer is None:
            return None
        self._check(answer[1], principal)
        return visit

    async def admit(self, principal: Principal, num_prompt_tokens: int) -> None:
        """Charge a prompt before it is computed; all of it counts, cached or not, as in the `usage` of the answer.

        Raises:
            ApiError: 429, the key has not so many tokens left now, or never has.
        """
        limits = principal.limits
        if limits.tokens_per_minute or limits.tokens_per_day:
            answer = await self._ask(
                principal,
                lambda principal, unwritten: self._ledger.admit(principal, num_prompt_tokens, unwritten),
                lambda: self.refund(principal, num_prompt_tokens),
            )
            if answer is not None:
                self._check(answer[1], principal)
        elif principal.name:
            self._account(principal).num_prompt_tokens += num_prompt_tokens

    def refund(self, principal: Principal, num_prompt_tokens: int) -> None:
        """Take back the charge for a prompt that was not computed."""
        if principal.name:
            self._account(principal).num_prompt_tokens -= num_prompt_tokens

    def count_output(self, principal: Principal, num_tokens: int) -> None:
        """Charge tokens that were generated; they may exceed the limits, and later requests wait for it."""
        if principal.name:
            self._account(principal).num_output_tokens += num_tokens

    def standing(self, principal: Principal) -> Standing | None:
        """How a key stands, as far as this process knows; None: it has no limits, or nothing is known."""
        known = self._standings.get(principal.id)
        if known is None or principal.limits == _NO_LIMITS:
            return None
        unwritten = self._unwritten.get(principal.id)
        standing = known.after(self._ledger.clock())
        return standing if unwritten is None else standing.use(unwritten.usage())

    async def close(self) -> None:
        """Write what is still to be written, and give everything back."""
        self._write()
        await asyncio.gather(*self._writing)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._ledger.close)
        self._thread.shutdown()

    def _check(self, refusal: Refusal | None, principal: Principal) -> None:
        if refusal is None:
            return
        self.on_refusal(refusal.limit_name)
        wait, spacing = refusal.wait, refusal.spacing
        if wait is None:  # for a place, if not for ever
            mean = self._mean_seconds.get(principal.id, _FIRST_GUESS)
            wait = spacing = round(1e6 * max(_FIRST_GUESS, mean / max(1, principal.limits.max_in_flight)))
        if not refusal.is_hopeless:
            wait = self._turns.next(principal.id, refusal.what, self._ledger.clock(), wait, spacing)
        raise limit_reached(refusal, principal.name, wait)

    def _leave(self, principal: Principal, began: float) -> None:
        seconds = time.monotonic() - began
        mean = self._mean_seconds.get(principal.id, seconds)
        self._mean_seconds[principal.id] = mean + _SHARE_OF_NEWEST * (seconds - mean)
        if principal.limits.max_in_flight:
            self._start(lambda: self._ledger.leave(principal.id))

    async def _ask(
        self,
        principal: Principal,
        ask: Callable[[Principal, Usage], tuple[Standing, Refusal | None]],
        undo: Callable[[], None],
    ) -> tuple[Standing, Refusal | None] | None:
        """The ledger's answer, or None: it cannot be used.

        If the client leaves before the ledger has answered, what the answer allows is undone.
        """
        unwritten = self._unwritten.pop(principal.id, None)
        usage = NOTHING if unwritten is None else unwritten.usage()
        asking = asyncio.ensure_future(self._in_thread(lambda: ask(principal, usage)))
        try:
            answer = await asyncio.shield(asking)
        except asyncio.CancelledError:

            def undo_allowed(done: "asyncio.Future[tuple[Standing, Refusal | None] | None]") -> None:
                if (answer := done.result()) is not None and answer[1] is None:
                    undo()

            asking.add_done_callback(undo_allowed)
            raise
        if answer is not None:
            self._standings[principal.id] = answer[0]
        return answer

    def _account(self, principal: Principal) -> _Unwritten:
        """Where to note what a key uses; it is written soon."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WRITE_SECONDS, self._write)
        if (unwritten := self._unwritten.get(principal.id)) is None:
            unwritten = self._unwritten[principal.id] = _Unwritten(principal)
        return unwritten

    def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unwritten:
            used = {unwritten.principal: unwritten.usage() for unwritten in self._unwritten.values()}
            self._unwritten.clear()
            self._start(lambda: self._ledger.charge(used), self._learn)

    def _learn(self, standings: Mapping[str, Standing]) -> None:
        self._standings |= {name: standing for name, standing in standings.items() if name in self._standings}

    def _start(self, work: Callable[[], _T], then: Callable[[_T], None] | None = None) -> None:
        async def run() -> None:
            result = await self._in_thread(work)
            if then is not None and result is not None:
                then(result)

        writing = asyncio.ensure_future(run())
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)

    async def _in_thread(self, work: Callable[[], _T]) -> _T | None:
        """The result of work with the ledger; None: it cannot be used."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            if time.monotonic() >= self._next_complaint:
                self._next_complaint = time.monotonic() + _COMPLAINT_SECONDS
                _log.error("the limits of keys are not kept, since their ledger cannot be used: %s", error)
            return None
