"""Take an exclusive flock at once, or name the process that holds it."""

import fcntl
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from lttd.errors import LockedError

_PAUSE_S: Final = 0.01


def lock_now(fd: int, explain: Callable[[str], str], *, attempts: int = 1) -> None:
    """Take an exclusive flock on the file behind *fd*, without waiting for its holder.

    *explain* makes the error's text from who holds it.  More than one of *attempts*: a process
    that only tests whether the file is locked holds it for a moment.

    Raises:
        LockedError: somebody else has it.
        OSError: the file cannot be locked.
    """
    for attempt in range(1, attempts + 1):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == attempts:
                raise LockedError(explain(lock_holder(fd))) from None
            time.sleep(_PAUSE_S)
        else:
            return


def lock_holder(fd: int) -> str:
    """Return command and pid of the holder of the flock on *fd*'s file, by /proc/locks."""
    return holder_of(os.fstat(fd))


def holder_of(status: os.stat_result) -> str:
    """Return the same for the file of *status*, which need not be open."""
    pid = _holder_pid(status)
    try:
        command = Path(f"/proc/{pid}/comm").read_text(errors="replace")
    except OSError:
        return "another process"
    return f"{command.strip()} (pid {pid})"


def is_listed(status: os.stat_result) -> bool:
    """Tell whether /proc/locks has a flock on the file of *status*."""
    return _holder_pid(status) is not None


def first_listed(statuses: Iterable[os.stat_result]) -> os.stat_result | None:
    """Return the first file on which /proc/locks has a flock; None if there is none.

    The list is read once, because a read takes 8 ms: the kernel waits until all CPUs notice.
    Source: Linux fs/locks.c, locks_start(), which calls percpu_down_write().
    """
    pids = _holder_pids()
    return next((status for status in statuses if _listed_name(status) in pids), None)


def _holder_pid(status: os.stat_result) -> str | None:
    return _holder_pids().get(_listed_name(status))


def _listed_name(status: os.stat_result) -> str:
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"


def _holder_pids() -> dict[str, str]:
    """Return the pids of the holders of all flocks, by the names of their files in /proc/locks."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return {}
    # The line of a process that waits for a lock has one word more.
    flocks = [words for words in map(str.split, lines) if words[1] == "FLOCK"]
    return {words[5]: words[4] for words in reversed(flocks)}
