"""How many tokens a step may have after steps were too large for the device, and when more are tried again."""

import sys

_NUM_STEPS = 32  # that have to come through before twice as many tokens are tried
_NONE = sys.maxsize


class StepLimit:
    """No limit at first; one that halves with each step that was too large, and doubles while steps come through.

    Attributes:
        num_tokens: that a step may have, however many it otherwise would.
    """

    def __init__(self, max_num_tokens: int) -> None:
        """A limit of `max_num_tokens` or more is none."""
        self.num_tokens = _NONE
        self._max_num_tokens = max_num_tokens
        self._num_successes = 0

    def halve(self, num_tokens: int) -> None:
        """A step, or one model's share of it, was too large with so many tokens."""
        self.num_tokens = max(1, num_tokens // 2)
        self._num_successes = 0

    def lift(self) -> None:
        """The steps' size was not to blame."""
        self.num_tokens = _NONE

    def grow(self) -> None:
        """A step came through."""
        if self.num_tokens == _NONE:
            return
        self._num_successes += 1
        if self._num_successes == _NUM_STEPS:
            self._num_successes = 0
            doubled = 2 * self.num_tokens
            self.num_tokens = doubled if doubled < self._max_num_tokens else _NONE
