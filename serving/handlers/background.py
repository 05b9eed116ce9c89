"""All responses being made in this process, each in a task of its own, and followed by any number of readers.

It sees to it that one response at a time is made in a conversation, that there are not too many in the background, and
that those of the background can be made by another process when this one has ended.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ApiError
from ..store.store import Store
from ..store.turns import TurnLocks
from ..store.unfinished import Claimed, StoredRequest
from .leases import Leases
from .response_run import ResponseRun, ResponseSource

MAX_BACKGROUND = 512
"""Background responses at once; each holds its events in memory."""
MAX_BACKGROUND_OF_ONE = MAX_BACKGROUND // 4
"""Of one principal, so that the others find room."""
NUMBERS_OF_A_START = 10**8
"""Sequence numbers that a response may use before it is begun again: the events of another run have higher ones, so
that whoever goes on after the last event that he knows gets the new run whole."""


class ResponseRuns:
    """All responses being made in this process.

    Args:
        store: where they go.
        turns: tells other processes of the conversations in which something is said here; None: there are none.
    """

    def __init__(self, store: Store, turns: TurnLocks | None = None) -> None:
        self.store = store
        self._turns = turns
        self._leases = Leases(store.unfinished, lambda: self.num_background > 0)
        self._by_task: dict[asyncio.Task[None], ResponseRun] = {}
        self._by_id: dict[tuple[str, str], ResponseRun] = {}  # of those that are stored
        self._conversations: set[tuple[str, str]] = set()  # of principals: something is said in them now

    @contextmanager
    def turn_in(self, principal: str, conversation_id: str | None) -> Iterator[None]:
        """Prepare and `start` a response in a conversation, which nobody else can do until the response is kept.

        Two at once would answer without knowing of each other, and their items would be mixed up.

        Args:
            principal: whose conversation it is.
            conversation_id: None: there is none, and nothing to guard.

        Raises:
            ApiError: 400, another response is being made in it.
        """
        if conversation_id is None:
            yield
            return
        turn = (principal, conversation_id)
        if turn in self._conversations or not (self._turns is None or self._turns.take(*turn)):
            raise _locked(conversation_id)
        self._conversations.add(turn)
        try:
            yield
        except BaseException:
            self._end_turn(turn)
            raise

    def _end_turn(self, turn: tuple[str, str]) -> None:
        self._conversations.discard(turn)
        if self._turns is not None:
            self._turns.release(*turn)

    async def start(
        self,
        source: ResponseSource,
        principal: str,
        *,
        store: bool,
        stream: bool,
        background: StoredRequest | None = None,
    ) -> ResponseRun:
        """Begin to make a response.

        Args:
            source: what makes it.
            principal: whose it is.
            store: keep it; a background response has to be kept.
            stream: its events are wanted; those of a background response always are.
            background: go on when the client leaves, and begin again from this when the process ends.

        Raises:
            ApiError: 413, it is too large to be stored; 429, too many in the background; 503, the store is unusable.
        """
        assert store or background is None
        if background is not None:
            self._check_room(principal)
        run = ResponseRun(
            source,
            principal,
            self.store,
            is_stored=store,
            is_streamed=stream or background is not None,
            background=background is not None,
            process=self._leases.process,
        )
        if background is not None:
            begins = (self._leases.lease(), background)
            await self.store.responses.save(principal, run.response, run.input_items, begins=begins)
        elif store:
            await self.store.responses.check(run.response, run.input_items)
        self._begin(run, principal, is_stored=store)
        return run

    def _check_room(self, principal: str) -> None:
        """Refuse one more response in the background."""
        own = sum(run.background for (owner, _), run in self._by_id.items() if owner == principal)
        if own >= MAX_BACKGROUND_OF_ONE:
            raise _too_many(f"{own} of your responses are being made in the background, as many as one client may have")
        if self.num_background >= MAX_BACKGROUND:
            raise _too_many(f"The server makes {MAX_BACKGROUND} responses in the background already")

    async def claim(self, principal: str, response_id: str) -> Claimed | None:
        """Take over an unfinished response, to `resume` or `release` it; None: it is not to be had.

        Raises:
            ApiError: 503, the store is unusable.
        """
        if self.find(principal, response_id) is not None:  # this process has slept for longer than its lease
            return None
        return await self.store.unfinished.claim(principal, response_id, self._leases.lease())

    def resume(self, claimed: Claimed, source: ResponseSource) -> ResponseRun:
        """Make a claimed response from its beginning."""
        run = ResponseRun(
            source,
            claimed.principal,
            self.store,
            is_stored=True,
            is_streamed=True,
            background=True,
            process=self._leases.process,
            first_number=(claimed.num_starts - 1) * NUMBERS_OF_A_START,
        )
        self._begin(run, claimed.principal, is_stored=True)
        return run

    def _begin(self, run: ResponseRun, principal: str, *, is_stored: bool) -> None:
        key = (principal, run.response["id"])
        task = run.start()
        self._by_task[task] = run
        task.add_done_callback(self._by_task.pop)
        if conversation := run.response.get("conversation"):
            turn = (principal, conversation["id"])
            task.add_done_callback(lambda _: self._end_turn(turn))
        if is_stored:
            self._by_id[key] = run
            task.add_done_callback(lambda _: self._by_id.pop(key, None))
        if run.background:
            self._leases.keep()

    def find(self, principal: str, response_id: str) -> ResponseRun | None:
        """A response that is being made, if it will be stored."""
        return self._by_id.get((principal, response_id))

    @property
    def num_background(self) -> int:
        """Background responses being made."""
        return sum(run.background for run in self._by_id.values())

    def stop_background(self) -> None:
        """Begin to let go of the background responses, so that those who follow them need not be waited for."""
        for run in self._by_task.values():
            if run.background:
                run.stop()

    async def close(self) -> None:
        """End all of them; those of the background are anybody's then."""
        for run in self._by_task.values():
            run.stop()
        await asyncio.gather(*self._by_task)
        await self._leases.close()


def _locked(conversation_id: str) -> ApiError:
    return ApiError(
        f"Another response is being made in conversation '{conversation_id}'. Wait until it is finished, or cancel it.",
        code="conversation_locked",
        param="conversation",
    )


def _too_many(reason: str) -> ApiError:
    return ApiError(
        f"{reason}. Try again when some are finished.",
        status=429,
        code="too_many_background_responses",
        param="background",
        retry_after=5,
    )
