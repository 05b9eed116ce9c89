"""How much each principal has had of the device, so that the one that has had least goes next.

This is the virtual token counter of "Fairness in Serving Large Language Models" (arXiv 2401.00588). A principal's
counter rises by the cost of everything that is computed for it, divided by its weight. Idle time earns nothing: a
principal that begins to wait is lifted to the lowest counter of those that wait already. So of two that always have
jobs waiting neither is ever far ahead of the other, and whoever asks for little is served at once.

Cost is counted in tokens, not in seconds: the same request costs the same on a busy and on an idle device, and nobody
pays for a step that was held up by something else. Tokens of different models are made comparable by the number of
parameters, to which both the arithmetic of a token and the memory read for it are proportional. (A mixture of experts
is overcharged beside other models.) A token of output costs two of a prompt: it is computed in a step that reads all
weights for few tokens. What the prefix cache holds costs nothing, nor does computing again what was lost by giving way,
which was not its principal's doing.
"""

from collections import OrderedDict
from dataclasses import dataclass

from .plan import ScheduledRow

OUTPUT_TOKEN_COST = 2.0
"""In prompt tokens."""

_MAX_DORMANT = 4096  # principals without jobs whose counters are kept: any number of keys may be made up by a client


@dataclass(slots=True, eq=False)
class Account:
    """What one principal with jobs has had."""

    weight: float = 1.0
    counter: float = 0.0
    """Cost over weight, and what it was lifted by."""
    num_jobs: int = 0
    """Waiting or running."""
    num_queues: int = 0
    """In which any of them waits."""


class Accounts:
    """The accounts of all principals, shared by the queues of all models."""

    def __init__(self, *, fair: bool = True) -> None:
        """Without `fair` nothing is charged, so that all counters stay equal."""
        self._fair = fair
        self._accounts: dict[str, Account] = {}
        self._waiting: dict[str, Account] = {}
        """Those of them with a job in a queue."""
        self._dormant: OrderedDict[str, float] = OrderedDict()
        """Counters of principals without jobs, the last to end a job at the end."""

    @property
    def num_accounts(self) -> int:
        """Principals about whom anything is known."""
        return len(self._accounts) + len(self._dormant)

    def counter(self, principal: str) -> float:
        """How much a principal with jobs has had."""
        return self._accounts[principal].counter

    def enter(self, principal: str, weight: float) -> None:
        """A job of a principal comes, and will wait. The newest job's weight counts for all."""
        account = self._accounts.get(principal)
        if account is None:
            account = self._accounts[principal] = Account(counter=self._dormant.pop(principal, 0.0))
        account.weight = weight
        account.num_jobs += 1
        if principal not in self._waiting:
            account.counter = max(account.counter, self._level())

    def leave(self, principal: str) -> None:
        """A job of a principal is over."""
        account = self._accounts[principal]
        account.num_jobs -= 1
        if account.num_jobs:
            return
        del self._accounts[principal]
        if not self._accounts:
            self._dormant.clear()  # nobody has missed anything
            return
        self._dormant[principal] = account.counter
        if len(self._dormant) > _MAX_DORMANT:
            self._dormant.popitem(last=False)

    def begin_waiting(self, principal: str) -> None:
        """A principal has a job in one more queue."""
        account = self._waiting[principal] = self._accounts[principal]
        account.num_queues += 1

    def end_waiting(self, principal: str) -> None:
        """A principal has no more jobs in one of the queues."""
        account = self._waiting[principal]
        account.num_queues -= 1
        if not account.num_queues:
            del self._waiting[principal]

    def charge(self, principal: str, cost: float) -> None:
        """Something was computed for a principal, at a cost in prompt tokens of a model of a billion parameters."""
        if self._fair:
            account = self._accounts[principal]
            account.counter += cost / account.weight

    def owed(self, principal: str, other: str) -> float:
        """The cost that one principal has to get until it has had as much as another; negative if it has had more."""
        account = self._accounts[principal]
        return (self._accounts[other].counter - account.counter) * account.weight

    def _level(self) -> float:
        """Where a principal begins that did not wait so far.

        If nobody waits it is ahead of nobody that runs: those who had less than others did not want more.
        """
        if self._waiting:
            return min(account.counter for account in self._waiting.values())
        return max(account.counter for account in self._accounts.values())


def charge_row(row: ScheduledRow) -> float:
    """The cost of a row in prompt tokens of its model; what it computes for the first time is charged, once."""
    request = row.request
    start = request.num_charged_tokens
    end = row.end - len(row.drafts)  # a guess is the server's idea: it costs when it comes true
    if end <= start:
        return 0.0
    request.num_charged_tokens = end
    num_output = max(0, end - max(start, len(request.prompt_token_ids)))
    return end - start - num_output + OUTPUT_TOKEN_COST * num_output
