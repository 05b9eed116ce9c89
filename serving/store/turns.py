"""Who speaks in a conversation now, known to every process that uses the same home, and forgotten when one dies."""

import fcntl
import hashlib
import os
from pathlib import Path


class TurnLocks:
    """Locks on bytes of one file, which stays empty: the system frees those of a process that ends.

    Args:
        path: the file, opened when the first lock is taken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def take(self, principal: str, conversation_id: str) -> bool:
        """Begin a turn; False: another process is within one. Turns of the same process do not see each other."""
        if self._file < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _position(principal, conversation_id))
        except (BlockingIOError, PermissionError):  # which of them depends on the system
            return False
        return True

    def release(self, principal: str, conversation_id: str) -> None:
        """End a turn."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _position(principal, conversation_id))


def _position(principal: str, conversation_id: str) -> int:
    """A place of its own in a file of 2^62 bytes."""
    digest = hashlib.sha256(f"{principal}/{conversation_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2
