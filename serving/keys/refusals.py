"""Logs who was refused at the gate, without the key, and without letting a flood of attempts flood the log."""

import logging
import time

from starlette.types import Scope

from ..errors import ApiError

_log = logging.getLogger(__name__)
_SECONDS = 1.0
"""Between two lines."""


class Refusals:
    """Writes a line at most once a second, with how many were left out before it."""

    def __init__(self) -> None:
        self._next = 0.0
        self._num_unsaid = 0

    def log(self, scope: Scope, error: ApiError) -> None:
        """One request was refused."""
        now = time.monotonic()
        if now < self._next:
            self._num_unsaid += 1
            return
        unsaid = f"; {self._num_unsaid} more before it" if self._num_unsaid else ""
        self._next, self._num_unsaid = now + _SECONDS, 0
        address = (scope.get("client") or ("a neighbour",))[0]
        # repr: a path may hold a line's end, and so what looks like a line of ours
        _log.warning(
            "refused %s %r from %s: %d %s%s",
            scope["method"],
            scope["path"][:200],
            address,
            error.status,
            error.code,
            unsaid,
        )
