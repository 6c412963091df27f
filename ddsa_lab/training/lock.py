"""One process a run folder: a lock that the system itself lets go of when its holder dies."""

import os
import threading
from pathlib import Path

from ddsa_lab.errors import LabError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

# Record locks don't keep threads of one process apart, and closing a second handle would give the first one's up.
_held: set[Path] = set()
_one_at_a_time = threading.Lock()


class RunLock:
    """Holds a file in `folder` from entering to leaving.

    A record lock rather than a file whose presence means "taken": it ends with its process even at SIGKILL, isn't
    inherited by data workers, and works across machines on shared file systems.

    Args:
        folder: made if absent.
        name: of the file; it stays behind, and means nothing without a holder.

    Raises:
        LabError: on entering, if another process or thread holds it, or the file system has no locks.
    """

    def __init__(self, folder: Path, name: str = ".lock") -> None:
        self.path = folder.resolve() / name

    def __enter__(self) -> "RunLock":
        if not self.acquire():
            raise LabError(
                f"{self.path.parent} is being worked on by another process: wait for it or choose another"
            )
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()

    def acquire(self) -> bool:
        """Take the lock if it is free, and say whether it was."""
        with _one_at_a_time:
            if self.path in _held or not self._lock():
                return False
            _held.add(self.path)
            return True

    def _lock(self) -> bool:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+")  # noqa: SIM115 - closing it gives the lock up
        except OSError as error:
            raise LabError(f"cannot write to {self.path.parent}: {error.strerror or error}") from error
        try:
            _lock(self._file.fileno())
        except (BlockingIOError, PermissionError):
            self._file.close()
            return False
        except OSError as error:
            self._file.close()
            raise LabError(f"cannot lock {self.path}: {error.strerror or error}; use another disk") from error
        return True

    def release(self) -> None:
        """Give the lock up."""
        with _one_at_a_time:
            self._file.close()
            _held.discard(self.path)


def _lock(handle: int) -> None:
    if fcntl is not None:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        os.lseek(handle, 0, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
