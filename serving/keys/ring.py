"""The keys as one API process knows them: looked up in memory, and read anew soon after the file has changed.

A thread of its own looks at the file once a second, so that a request costs a dictionary's lookup, and no other work of
the process can hold up a revocation.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..principal import Principal
from .key import Key
from .key_file import KeyFile, KeyFileError

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
_NOTE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Known:
    """What one reading of the file has told; replaced as a whole."""

    principals: dict[str, Principal]
    """By digest."""
    last_used: dict[str, float]
    revoked: frozenset[str]
    """Digests."""
    is_open: bool


class KeyRing:
    """Looks keys up.

    Args:
        file: where they are; this object is its only user from now on.
        no_auth: the server was started with --no-auth: keys that were revoked before that do not close it.
        since: when the server was started, in Unix seconds; the same in all its processes.

    Raises:
        KeyFileError: the file cannot be read.
    """

    def __init__(self, file: KeyFile, *, no_auth: bool, since: float) -> None:
        self._file = file
        self._no_auth = no_auth
        self._since = since
        self._known = self._read()
        self._used: set[str] = set()
        self._noted: dict[str, float] = {}
        self._complaint = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keys", daemon=True)

    @property
    def is_open(self) -> bool:
        """Whether no key is needed: there has never been one. Revoking the last one does not open the server."""
        return self._known.is_open

    def find(self, digest: str) -> Principal | None:
        """Whom a key lets in; None: nobody."""
        principal = self._known.principals.get(digest)
        if principal is not None:
            self._used.add(digest)
        return principal

    def find_by_id(self, principal_id: str) -> Principal | None:
        """Who has an id by now, for work that outlives its request; None: the key is not valid any more."""
        if self.is_open:
            return Principal(principal_id)
        owners = (owner for owner in self._known.principals.values() if owner.id == principal_id)
        return next(owners, None)

    def was_revoked(self, digest: str) -> bool:
        """Whether a key was one."""
        return digest in self._known.revoked

    def start(self) -> None:
        """Follow the file from now on."""
        self._thread.start()

    def close(self) -> None:
        """Follow it no more."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self._note_use(time.time(), 0.0)
        except KeyFileError as error:
            self._complain(str(error))
        self._file.close()

    def _watch(self) -> None:
        while not self._closing.wait(_LOOK_SECONDS):
            try:
                self.refresh()
            except Exception:  # without this thread, no key could be revoked any more
                _log.exception("the keys could not be looked at; they stay as they were")

    def refresh(self) -> None:
        """Read the file if it has changed. If it cannot be read, what was known stays: nothing opens by an accident."""
        try:
            if self._file.changed():
                self._known = self._read()
            self._note_use(time.time(), _NOTE_SECONDS)
        except KeyFileError as error:
            self._complain(str(error))
        else:
            self._complaint = ""

    def _read(self) -> _Known:
        keys = self._file.read()
        return _Known(
            principals={key.digest: key.principal() for key in keys if key.revoked_at is None},
            last_used={key.digest: key.last_used_at or 0.0 for key in keys},
            revoked=frozenset(key.digest for key in keys if key.revoked_at is not None),
            is_open=not self._closes(keys),
        )

    def _closes(self, keys: Sequence[Key]) -> bool:
        return any(key.revoked_at is None or not self._no_auth or key.revoked_at >= self._since for key in keys)

    def _note_use(self, now: float, interval: float) -> None:
        """Write down when keys were used, each at most once in `interval` seconds: a write costs a disk's time."""
        last_used = self._known.last_used
        due = [
            digest
            for digest in list(self._used)  # copied at once, as requests add to it meanwhile
            if now - max(self._noted.get(digest, 0.0), last_used.get(digest, 0.0)) >= interval
        ]
        if due:
            self._used.difference_update(due)
            self._noted |= dict.fromkeys(due, now)
            self._file.note_use(due, now)

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            _log.error("%s; the keys that were known stay as they were", complaint)
