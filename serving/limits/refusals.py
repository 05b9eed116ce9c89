"""What a client hears of a limit that it has reached, in the words by which clients know when to try again."""

import math

from ..error_forms import Limited
from ..errors import ApiError
from .standing import Refusal

_LONGEST_RETRY = 120.0
"""Seconds: longer than clients wait by themselves. They need not knock meanwhile."""


def limit_reached(refusal: Refusal, name: str, wait: int) -> ApiError:
    """429 for a key that has reached a limit.

    Args:
        refusal: which, and by how much.
        name: the key's.
        wait: microseconds until it is this request's turn; of no matter if that can never come.
    """
    head = f"for key '{name}' on {refusal.what}: Limit {refusal.limit}"
    limited: Limited = "requests" if refusal.what.startswith("requests") else "tokens"
    if refusal.is_hopeless:
        return ApiError(
            f"The request is too large {head}, Requested {refusal.requested}. It can never succeed: send less at once, "
            "or ask the server's operator for a higher limit.",
            status=429,
            code="rate_limit_exceeded",
            limited=limited,
            headers={"x-should-retry": "false"},
        )
    seconds = math.ceil(wait / 1000) / 1000
    return ApiError(
        f"Rate limit reached {head}, Used {refusal.used}, Requested {refusal.requested}. "
        f"Please try again in {in_seconds(seconds)}.",
        status=429,
        code="rate_limit_exceeded",
        limited=limited,
        retry_after=seconds,
        headers={"x-should-retry": "false"} if seconds > _LONGEST_RETRY else None,
    )


def in_seconds(seconds: float) -> str:
    """In the one form that Codex reads, to the millisecond: "20s", "1.5s"."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
