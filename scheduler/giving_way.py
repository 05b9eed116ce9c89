"""Which running request gives its blocks or its seat to another.

A running request that needs a block takes it from any that comes after it. One that waits may take the place of a
running one only if its principal is owed more than the other would lose by it: else two principals with much to do
would take turns in throwing away each other's work. Since what is computed again is not charged, every such change of
places needs new tokens to be computed before it can be reversed, and their number is bounded by what there is to do.
"""

from collections.abc import Callable, Iterable

from .lanes import GenerationLane
from .request import Request

_Running = tuple[GenerationLane, Request]


class RunningOrder:
    """The running requests of all models in the policy's order, as it is when a step begins.

    The order changes while the step is dealt out. Kept as it was, there is always a first one.
    """

    def __init__(self, lanes: Iterable[GenerationLane]) -> None:
        self._lanes = list(lanes)
        running = [(lane, request) for lane in self._lanes for request in lane.running.values()]
        running.sort(key=lambda entry: entry[0].waiting.key(entry[1]))
        self.requests = [entry for entry in running if not entry[1].alone]
        """Those whose turn is not to come in steps of their own, first ones first."""
        self._rank = {request.request_id: rank for rank, (_, request) in enumerate(running)}

    def find_for_block(self, lane: GenerationLane, request: Request, scheduled: set[str]) -> Request | None:
        """Who gives way so that a running request can grow: the last one that comes after it; None: there is none.

        `scheduled` are the requests that are in the step already.
        """
        rank = self._rank[request.request_id]

        def is_later(other_lane: GenerationLane, other: Request) -> bool:
            is_open = other.request_id not in scheduled and not other.alone
            return is_open and self._rank[other.request_id] > rank

        return self._last(is_later, lane)

    def find_for_start(self, lane: GenerationLane, request: Request, *, needs_blocks: bool) -> Request | None:
        """Who gives way to a waiting request: the last one whose principal is that far ahead; None: there is none."""
        accounts = lane.waiting.accounts

        def is_far_ahead(other_lane: GenerationLane, other: Request) -> bool:
            owed = accounts.owed(request.principal, other.principal)
            return not other.alone and owed > other_lane.token_cost * _num_lost_tokens(other_lane, other, request)

        return self._last(is_far_ahead, lane if needs_blocks else None)

    def find_last(self) -> Request | None:
        """The last of all that still run; None: there is none."""
        return self._last(lambda other_lane, other: True, None)

    def _last(self, is_open: Callable[[GenerationLane, Request], bool], lane: GenerationLane | None) -> Request | None:
        """The last request that may give way, and whose blocks a request of `lane`, if given, could come to use.

        A request of another model gives its blocks in vain unless a slab becomes idle by it, now or together with those
        that would have to follow.
        """
        candidates: list[Request] = []
        for other_lane in self._lanes:
            given: list[Request] = []
            kept: set[int] = set()  # slabs that stay with the other model whoever gives way
            for other in other_lane.running.values():
                if is_open(other_lane, other):
                    given.append(other)
                elif lane is not None and other_lane is not lane:
                    kept |= other_lane.kv.slabs_of(other)
            helps_anyhow = lane is None or other_lane is lane
            candidates += [other for other in given if helps_anyhow or other_lane.kv.slabs_of(other) - kept]
        return max(candidates, key=lambda other: self._rank[other.request_id], default=None)


def _num_lost_tokens(lane: GenerationLane, request: Request, newcomer: Request) -> int:
    """Tokens that a request will have to compute again if it gives way to another.

    The prefix cache keeps what the newcomer does not overwrite.
    """
    lost = request.num_computed_tokens
    return min(lost, newcomer.max_num_tokens) if lane.kv.enable_prefix_caching else lost
