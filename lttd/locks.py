"""Find the process that holds a flock, for messages that name it."""

import os
from pathlib import Path


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


def _holder_pid(status: os.stat_result) -> str | None:
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        # The line of a process that waits for a lock has one word more.
        if words[1] == "FLOCK" and words[5] == wanted:
            return words[4]
    return None
