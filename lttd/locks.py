"""Who holds a flock: the answer to "in use by whom?"."""

import os
from pathlib import Path


def lock_holder(fd: int) -> str:
    """Say who holds the flock on the file behind *fd*, by /proc/locks: command and pid."""
    status = os.fstat(fd)
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5] == wanted:
                command = Path(f"/proc/{words[4]}/comm").read_text(errors="replace")
                return f"{command.strip()} (pid {words[4]})"
    except (OSError, IndexError):
        pass
    return "another process"
