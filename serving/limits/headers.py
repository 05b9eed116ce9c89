"""Headers that tell a client how its key stands: OpenAI's names on every route, Anthropic's on Anthropic's."""

from datetime import UTC, datetime
from typing import NamedTuple

from .standing import Standing


class _Allowance(NamedTuple):
    what: str
    limit: int
    remaining: int
    reset: int
    """Microseconds until all of it is there again."""


def limit_headers(standing: Standing, *, anthropic: bool) -> list[tuple[bytes, bytes]]:
    """The headers for the limits that a key has.

    Of two limits of tokens, those of a minute and of a day, they tell of the one of which less is left.

    Args:
        standing: the key's.
        anthropic: write Anthropic's names too.
    """
    headers: list[tuple[bytes, bytes]] = []
    for allowance in _allowances(standing):
        what, limit, remaining, reset = allowance
        values = [("limit", str(limit)), ("remaining", str(remaining)), ("reset", duration(reset))]
        headers += [(f"x-ratelimit-{field}-{what}".encode(), value.encode()) for field, value in values]
        if anthropic:
            until = datetime.fromtimestamp(-(-(standing.now + reset) // 1_000_000), UTC)
            values[2] = ("reset", until.strftime("%Y-%m-%dT%H:%M:%SZ"))
            headers += [(f"anthropic-ratelimit-{what}-{field}".encode(), value.encode()) for field, value in values]
    return headers


def _allowances(standing: Standing) -> list[_Allowance]:
    limits = standing.limits
    found = []
    if limit := limits.requests_per_minute:
        bucket = standing.requests
        found.append(_Allowance("requests", limit, bucket.remaining(limit), bucket.until_empty(limit)))
    tokens = []
    if limit := limits.tokens_per_minute:
        bucket = standing.tokens
        tokens.append(_Allowance("tokens", limit, bucket.remaining(limit), bucket.until_empty(limit)))
    if limit := limits.tokens_per_day:
        remaining = max(0, limit - standing.today.num_tokens)
        tokens.append(_Allowance("tokens", limit, remaining, standing.until_tomorrow()))
    return found + sorted(tokens, key=lambda allowance: allowance.remaining)[:1]


def duration(microseconds: int) -> str:
    """A time span as OpenAI writes it: "120ms", "1.5s", "6m0s", "2h0m0s"; rounded up to a millisecond."""
    milliseconds = -(-microseconds // 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds
