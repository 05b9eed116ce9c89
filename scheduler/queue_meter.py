"""Measures how fast a queue is emptied while more waits than is taken up: in tokens a second, over the last seconds."""

import math
from collections.abc import Callable

_MEMORY = 30.0
"""Seconds after which what was seen counts a third."""
_LEAST_SECONDS = 1.0  # of emptying that must be remembered; less says nothing


class DrainMeter:
    """The exponentially averaged pace of one queue.

    Only the time counts in which a step left something waiting: a queue that every step empties says nothing of how
    fast it could be emptied. What is not seen again is forgotten.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = clock()
        self._had_backlog = False
        self._taken = 0  # in the step that is being scheduled
        self._num_tokens = 0.0
        self._seconds = 0.0

    @property
    def rate(self) -> float | None:
        """Tokens a second; None: not known."""
        fading = math.exp((self._last - self._clock()) / _MEMORY)
        return self._num_tokens / self._seconds if self._seconds * fading >= _LEAST_SECONDS else None

    def take_up(self, num_tokens: int) -> None:
        """Waiting tokens were scheduled."""
        self._taken += num_tokens

    def note_empty(self) -> None:
        """Nothing waits any more though no step took it up: the time until the next step is nobody's wait."""
        self._had_backlog = False

    def end_step(self, *, has_backlog: bool) -> None:
        """A step was scheduled, which has left something waiting or not."""
        now = self._clock()
        elapsed = now - self._last
        fading = math.exp(-elapsed / _MEMORY)
        self._num_tokens *= fading
        self._seconds *= fading
        if has_backlog or self._had_backlog:
            self._num_tokens += self._taken
        if self._had_backlog:
            self._seconds += elapsed
        self._last, self._taken, self._had_backlog = now, 0, has_backlog
