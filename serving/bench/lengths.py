"""Distributions of prompt and output lengths, counted in tokens."""

import random
from dataclasses import dataclass
from typing import Protocol


class Lengths(Protocol):
    """Something that lengths are drawn from; `str()` of it is what `parse_lengths` reads."""

    def sample(self, rng: random.Random) -> int:
        """One length, >= 1."""
        ...


@dataclass(frozen=True, slots=True)
class FixedLength:
    """Always the same length."""

    length: int

    def __str__(self) -> str:
        return str(self.length)

    def sample(self, rng: random.Random) -> int:
        """The length."""
        return self.length


@dataclass(frozen=True, slots=True)
class UniformLengths:
    """Every length from `low` to `high`, both included, equally often."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"uniform:{self.low}:{self.high}"

    def sample(self, rng: random.Random) -> int:
        """One length."""
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class LogNormalLengths:
    """exp(N(mu, sigma^2)) rounded, drawn again while outside [low, high]."""

    name: str
    mu: float
    sigma: float
    low: int
    high: int

    def __str__(self) -> str:
        return self.name

    def sample(self, rng: random.Random) -> int:
        """One length."""
        while True:
            length = round(rng.lognormvariate(self.mu, self.sigma))
            if self.low <= length <= self.high:
                return length


# People's chats: many short questions, a few pasted pages. Not a fit to a file: log-normal, since turn lengths of
# ShareGPT are skewed like one, cut to 4..1024 tokens as load tests usually cut that data, with mu solved from the
# mean of the truncated log-normal so that inputs average 200 tokens (sigma 1.4) and outputs 180 (sigma 1.1).
SHAREGPT_INPUTS = LogNormalLengths("sharegpt", mu=4.880, sigma=1.4, low=4, high=1024)
SHAREGPT_OUTPUTS = LogNormalLengths("sharegpt", mu=4.779, sigma=1.1, low=4, high=1024)


def parse_lengths(text: str, sharegpt: LogNormalLengths) -> Lengths:
    """The distribution that `64`, `uniform:100:1024` or `sharegpt` names.

    Args:
        text: what the user wrote.
        sharegpt: the distribution meant by `sharegpt` here: inputs' or outputs'.

    Raises:
        ValueError: it is none of these, or a length is below 1, or the range is empty.
    """
    if text == "sharegpt":
        return sharegpt
    kind, *bounds = text.split(":")
    try:
        if kind == "uniform" and len(bounds) == 2:
            low, high = map(int, bounds)
        elif not bounds:
            low = high = int(kind)
        else:
            raise ValueError(text)
    except ValueError:
        message = f"{text!r} is no length: give tokens (64), a range (uniform:100:1024) or sharegpt"
        raise ValueError(message) from None
    if not 1 <= low <= high:
        raise ValueError(f"{text!r} is no length: the shortest must be at least 1, the longest no shorter")
    return FixedLength(low) if kind != "uniform" else UniformLengths(low, high)
