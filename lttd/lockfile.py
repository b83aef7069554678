"""The lock of a trace or a segment: a file that only its owner can open, locked by flock(2)."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from lttd.beneath import OpenDirectory, Place
from lttd.errors import RefusedError, StorageError, storage_error
from lttd.locks import is_listed, lock_now
from lttd.openat import close_fd

# Nobody else can open the file, so nobody else can hold its lock.
LOCK_MODE: Final = 0o600
# A process that takes a lock tries this often, since is_locked() may hold it meanwhile.
_ATTEMPTS: Final = 6


class Lock:
    """An exclusive flock, held until release() or the process's end.

    It is on a file that only its owner can open, because any user who may read a directory could
    lock the directory.  The file exists while the lock is held, and after a kill.
    """

    def __init__(self, directory: OpenDirectory, path: Path) -> None:
        """Take the lock, on a file at *path* below *directory*.

        Raises:
            LockedError: another process has it; the text names its pid if the kernel reports it.
            StorageError: the file cannot be made.
        """
        self._directory, self.path = directory, path
        while True:
            try:
                self._fd = directory.open_for_writing(path, LOCK_MODE)
            except RefusedError as error:
                reason = f"{error.strerror}; it is not a lock file of lttd: remove it"
                raise StorageError(path, reason, "EPERM") from None
            except OSError as error:
                raise storage_error(path, error) from None
            try:
                if self._take():
                    return
            except BaseException:
                close_fd(self._fd)
                raise
            close_fd(self._fd)

    def _take(self) -> bool:
        """Lock the file; return whether its name still leads to it."""
        try:
            os.fchmod(self._fd, LOCK_MODE)  # a copied file may have another mode
            # Several times, since a viewer that tests the lock holds it for a moment.
            lock_now(self._fd, self._in_use, attempts=_ATTEMPTS)
            return os.path.samestat(os.fstat(self._fd), self._directory.stat(self.path))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_error(self.path, error) from None

    def _in_use(self, holder: str) -> str:
        return f"{self.path.parent}: in use by {holder}; stop it, or choose another"

    def is_in_place(self) -> bool:
        """Tell whether other processes would still find the lock; True if that is unknown."""
        try:
            return os.path.samestat(os.fstat(self._fd), self._directory.stat(self.path))
        except FileNotFoundError:
            return False
        except OSError:  # too many open files, say
            return True

    def release(self) -> None:
        """Release the lock, and remove its file.

        Leave a file that was put in its place: it may be another process's lock.
        """
        if self.is_in_place():
            with suppress(OSError):
                self._directory.remove_file(self.path)
        close_fd(self._fd)


def is_locked(place: Place) -> bool:
    """Tell whether a process holds the lock of a file.

    If this process may not open the file, use /proc/locks, which covers one pid namespace.
    """
    try:
        if is_listed(place.stat()):
            return True
        fd = place.open()
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        close_fd(fd)
    return False
