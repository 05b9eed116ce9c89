"""Who holds a seat and KV blocks: starts waiting requests, and takes back from those who give way."""

from .alone import AloneJobs
from .giving_way import RunningOrder
from .lanes import GenerationLane, Lane, first_lane
from .policy import Job, SortKey
from .request import BlockId, Request, RequestStatus
from .step import Step


class Seats:
    """The running requests of all models."""

    def __init__(self, max_num: int, lanes: dict[str, GenerationLane], alone: AloneJobs) -> None:
        """At most `max_num` requests of all `lanes` run at once; `alone` has the jobs in none of their queues."""
        self.max_num = max_num
        self._lanes = lanes
        self._alone = alone

    @property
    def num_taken(self) -> int:
        """Requests that hold blocks, over all models."""
        return sum(len(lane.running) for lane in self._lanes.values())

    def order(self) -> RunningOrder:
        """The running requests as they are in order now."""
        return RunningOrder(self._lanes.values())

    def wait(self, lane: Lane, job: Job) -> None:
        """Queue a job that holds no blocks."""
        if job.alone:
            self._alone.add(job)
        else:
            lane.waiting.push(job)

    def preempt_all(self) -> None:
        """Take the blocks of every running request; the requests are queued again, and computed again."""
        for lane in self._lanes.values():
            for request in list(lane.running.values()):
                self.preempt(lane, request)

    def preempt(self, lane: GenerationLane, request: Request) -> None:
        """Take a running request's blocks and queue it again; what it computed is found or computed again later."""
        del lane.running[request.request_id]
        lane.kv.release(request)
        request.status = RequestStatus.WAITING
        request.num_preemptions += 1
        lane.num_preemptions += 1
        self.wait(lane, request)

    def make_room(self, step: Step, order: RunningOrder, lane: GenerationLane, request: Request) -> bool:
        """Preempt later requests until the newest tokens of `request` have blocks; False if it must wait a step.

        Requests already in this step are left alone. The first running request never waits: either all its tokens got
        their blocks at admission, or it may preempt every other one, and `add` made sure that it fits alone.
        """
        while not lane.kv.can_grow(request):
            step.out_of_blocks = True
            victim = order.find_for_block(lane, request, step.scheduled)
            if victim is None:
                return False
            self.preempt(self._lanes[victim.model], victim)
        return True

    def displace(self) -> RunningOrder:
        """Start the first waiting request in the place of those who had far more; the order after it.

        Streams that hold all seats or blocks for a long time would keep whoever comes waiting as long. One newcomer a
        step: it is given its blocks now, before the streams grow into them.
        """
        order = self.order()
        lane = first_lane(self._lanes.values())
        if lane is None:
            return order
        request = _first_request(lane)
        has_preempted = False
        while self.num_taken == self.max_num or (cached := self._find_blocks(lane, request)) is None:
            needs_blocks = self.num_taken < self.max_num
            victim = order.find_for_start(lane, request, needs_blocks=needs_blocks)
            if victim is None or request.num_pending_tokens:
                break
            self.preempt(self._lanes[victim.model], victim)
            has_preempted = True
        else:
            if has_preempted:
                self._start(lane, request, cached)
        return self.order() if has_preempted else order

    def admit_waiting(self, step: Step, before: SortKey | None = None) -> None:
        """Start waiting requests of all models in the policy's order, until room, seats or blocks are gone.

        With `before`, only those that come before that place in the order.
        """
        while self.num_taken < self.max_num and not step.out_of_blocks:
            lane = first_lane(self._lanes.values())
            if lane is None or step.room_for(lane) == 0:
                return
            request = _first_request(lane)
            if before is not None and lane.waiting.key(request) > before:
                return
            cached = self._find_blocks(lane, request)
            if cached is None:
                return
            self._start(lane, request, cached)
            step.add_prompt(lane, request)

    def admit_alone(self, lane: GenerationLane, request: Request) -> None:
        """Start a request at once: those that would run last give way."""
        cached = lane.kv.find_cached(request)
        order = self.order()
        while self.num_taken == self.max_num or not lane.kv.can_admit(request, cached):
            victim = order.find_last()
            assert victim is not None, "`add` has seen that the request fits"
            self.preempt(self._lanes[victim.model], victim)
        self._start(lane, request, cached)

    @staticmethod
    def _find_blocks(lane: GenerationLane, request: Request) -> list[BlockId] | None:
        """The blocks that a waiting request could start from; None if there are not enough free ones for the rest."""
        if request.num_pending_tokens:
            return None  # it was preempted a moment ago, and its last token is on the device: its place is unknown
        cached = lane.kv.find_cached(request)
        return cached if lane.kv.can_admit(request, cached) else None

    @staticmethod
    def _start(lane: GenerationLane, request: Request, cached: list[BlockId]) -> None:
        """Give a waiting request its seat and its blocks."""
        lane.waiting.remove(request.request_id)
        lane.kv.admit(request, cached)
        request.num_charged_tokens = max(request.num_charged_tokens, request.num_computed_tokens)
        request.status = RequestStatus.RUNNING
        lane.running[request.request_id] = request


def _first_request(lane: GenerationLane) -> Request:
    """The lane's first waiting request."""
    request = lane.waiting.peek()
    assert isinstance(request, Request)
    return request
