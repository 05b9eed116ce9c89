"""A limit per minute as exact arithmetic: what is taken runs back evenly, so that there is no minute to wait for.

A bucket is empty when nobody has asked for a minute. So much as the limit may be taken at once, and in any span of
time at most the limit once more for each minute of it.
"""

from dataclasses import dataclass

MINUTE = 60_000_000
"""Microseconds. A unit of a bucket is this part of what is limited, so that `limit` units run back each microsecond:
nothing is ever rounded."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """What has been taken of a limit and has not run back yet."""

    taken: int = 0
    """Units."""
    at: int = 0
    """When that was so: Unix microseconds."""

    def after(self, now: int, limit: int) -> "Bucket":
        """The bucket at a later time; a clock that was set back lets nothing run back.

        Args:
            now: Unix microseconds.
            limit: a minute; 0: there is none, and nothing is kept.
        """
        if not limit:
            return Bucket(0, now)
        return Bucket(max(0, self.taken - limit * max(0, now - self.at)), now)

    def take(self, count: int) -> "Bucket":
        """The same with so much taken, over the limit if need be; a negative count gives back."""
        return Bucket(max(0, self.taken + count * MINUTE), self.at)

    def used(self) -> int:
        """What counts as used, rounded up."""
        return -(-self.taken // MINUTE)

    def remaining(self, limit: int) -> int:
        """What may be taken now."""
        return max(0, limit - self.used())

    def wait(self, count: int, limit: int) -> int:
        """Microseconds until `count`, which is within the limit, may be taken; 0: now."""
        return max(0, -(-(self.taken + (count - limit) * MINUTE) // limit))

    def until_empty(self, limit: int) -> int:
        """Microseconds until all has run back."""
        return -(-self.taken // limit)
