"""Which processes of the servers on one home live: each holds the lock of a file, which the system frees at its end."""

import fcntl
import os
import uuid
from contextlib import suppress
from pathlib import Path

_SUFFIX = ".process"


class Presence:
    """This process among those that use a folder.

    A lock tells more than a process id, which comes again, and which processes in different containers cannot compare.

    Args:
        folder: of the files, which exists.

    Attributes:
        name: this process's, never used before.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex
        self._folder = folder
        # Locked before it has a name that anybody looks for: nobody finds it unlocked while its process lives.
        nameless = folder / self.name
        self._file = os.open(nameless, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        nameless.rename(self._path(self.name))

    def others(self) -> list[str]:
        """The names of all other processes that have a file, living or not."""
        names = [path.stem for path in self._folder.glob(f"*{_SUFFIX}")]
        return [name for name in names if name != self.name]

    def is_alive(self, name: str) -> bool:
        """Whether a process lives; the file of one that does not goes."""
        if name == self.name:
            return True
        path = self._path(name)
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            path.unlink(missing_ok=True)
            return False
        finally:
            os.close(file)

    def close(self) -> None:
        """Be no longer there."""
        with suppress(FileNotFoundError):
            self._path(self.name).unlink()
        os.close(self._file)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"
