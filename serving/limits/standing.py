"""How a key stands against its limits at one moment, and which of them a request would break."""

from dataclasses import dataclass, replace
from typing import Literal

from ..principal import Limits
from .bucket import MINUTE, Bucket

DAY = 86_400_000_000
"""Microseconds. Days are those of UTC."""

What = Literal["requests per min (RPM)", "tokens per min (TPM)", "tokens per day (TPD)", "requests in flight"]

_NAMES: dict[What, str] = {
    "requests per min (RPM)": "requests_per_minute",
    "tokens per min (TPM)": "tokens_per_minute",
    "tokens per day (TPD)": "tokens_per_day",
    "requests in flight": "max_in_flight",
}
"""As `Limits` has them."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a key has used today."""

    num_requests: int = 0
    num_prompt_tokens: int = 0
    """All of them, those that the prefix cache had too."""
    num_output_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Of both kinds."""
        return self.num_prompt_tokens + self.num_output_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.num_requests + other.num_requests,
            self.num_prompt_tokens + other.num_prompt_tokens,
            self.num_output_tokens + other.num_output_tokens,
        )


NOTHING = Usage()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something may not be done now."""

    what: What
    limit: int
    used: int
    requested: int
    wait: int | None
    """Microseconds until it may be done; None: never, or, of requests in flight, when one of them ends."""

    @property
    def is_hopeless(self) -> bool:
        """More is wanted than the limit is."""
        return self.requested > self.limit

    @property
    def spacing(self) -> int:
        """Microseconds between two such requests that pass by a limit per minute; 0: by others they pass together."""
        return self.requested * MINUTE // self.limit if self.limit_name.endswith("per_minute") else 0

    @property
    def limit_name(self) -> str:
        """The limit's, as `Limits` has it."""
        return _NAMES[self.what]


@dataclass(frozen=True, slots=True)
class Standing:
    """A key's account."""

    limits: Limits
    now: int
    """Unix microseconds."""
    requests: Bucket = Bucket()
    tokens: Bucket = Bucket()
    today: Usage = NOTHING
    num_in_flight: int = 0

    def after(self, now: int) -> "Standing":
        """The same at a later time."""
        limits = self.limits
        return replace(
            self,
            now=now,
            requests=self.requests.after(now, limits.requests_per_minute),
            tokens=self.tokens.after(now, limits.tokens_per_minute),
            today=NOTHING if now // DAY > self.now // DAY else self.today,
        )

    def use(self, usage: Usage) -> "Standing":
        """The same with so much used; negative counts give back what was charged before."""
        limits = self.limits
        today = self.today + usage
        return replace(
            self,
            requests=self.requests.take(usage.num_requests) if limits.requests_per_minute else self.requests,
            tokens=self.tokens.take(usage.num_tokens) if limits.tokens_per_minute else self.tokens,
            today=replace(today, num_prompt_tokens=max(0, today.num_prompt_tokens)),  # yesterday's is not given back
        )

    def until_tomorrow(self) -> int:
        """Microseconds."""
        return DAY - self.now % DAY

    def refuse_request(self) -> Refusal | None:
        """Why no further request may begin now: the reason that lasts longest.

        Its tokens are not known yet; one that has no token left is not worth reading.
        """
        limits = self.limits
        reasons = [self._requests(), *self._reasons_of_tokens(1)]
        if limits.max_in_flight and self.num_in_flight >= limits.max_in_flight:
            reasons.append(Refusal("requests in flight", limits.max_in_flight, self.num_in_flight, 1, None))
        return _longest(reasons)

    def refuse_tokens(self, count: int) -> Refusal | None:
        """Why a prompt of so many tokens may not be computed now."""
        return _longest(self._reasons_of_tokens(count))

    def _requests(self) -> Refusal | None:
        limit = self.limits.requests_per_minute
        if not limit or not (wait := self.requests.wait(1, limit)):
            return None
        return Refusal("requests per min (RPM)", limit, self.requests.used(), 1, wait)

    def _reasons_of_tokens(self, count: int) -> list[Refusal | None]:
        reasons: list[Refusal | None] = []
        if (limit := self.limits.tokens_per_minute) and (wait := self.tokens.wait(count, limit)):
            hopeless = count > limit
            used = self.tokens.used()
            reasons.append(Refusal("tokens per min (TPM)", limit, used, count, None if hopeless else wait))
        if (limit := self.limits.tokens_per_day) and (used := self.today.num_tokens) + count > limit:
            hopeless = count > limit
            wait_a_day = None if hopeless else self.until_tomorrow()
            reasons.append(Refusal("tokens per day (TPD)", limit, used, count, wait_a_day))
        return reasons


def _longest(reasons: list[Refusal | None]) -> Refusal | None:
    """The one that can never be mended, or else takes longest."""
    found = [reason for reason in reasons if reason is not None]
    return max(found, key=lambda reason: (reason.is_hopeless, reason.wait or 0), default=None)
