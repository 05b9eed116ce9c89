"""This process's leases on the background responses that it makes: renewed while there are any, released at its end."""

import asyncio
import logging
import uuid
from collections.abc import Callable

from ..errors import ApiError
from ..store.unfinished import Lease, UnfinishedStore

_log = logging.getLogger(__name__)
LEASE_SECONDS = 20.0
"""After that long without a sign of life from its process, an unfinished response is anybody's."""
_RENEWAL_INTERVAL = 5.0


class Leases:
    """Shows that this process lives.

    Args:
        store: where its leases are.
        is_busy: tells whether it has any.

    Attributes:
        process: its name in them.
    """

    def __init__(self, store: UnfinishedStore, is_busy: Callable[[], bool]) -> None:
        self.process = uuid.uuid4().hex
        self._store = store
        self._is_busy = is_busy
        self._renewal: asyncio.Task[None] | None = None
        self._is_used = False

    def lease(self) -> Lease:
        """A lease that begins now."""
        self._is_used = True
        return Lease(self.process, self._store.now() + LEASE_SECONDS)

    def keep(self) -> None:
        """Renew them until there is none any more."""
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._renew(), name="response-leases")

    async def close(self) -> None:
        """Let others have at once what is still leased."""
        if self._renewal is not None:
            self._renewal.cancel()
        if self._is_used:
            try:
                await self._store.release(self.process)
            except ApiError as error:
                _log.error(
                    "others have to wait for %g s until they make unfinished responses: %s", LEASE_SECONDS, error
                )

    async def _renew(self) -> None:
        while self._is_busy():
            await asyncio.sleep(_RENEWAL_INTERVAL)
            try:
                await self._store.renew(self.lease())
            except ApiError as error:
                _log.error("the leases of background responses could not be renewed: %s", error.message)
        self._renewal = None
