"""Finding the per-CPU files of relay channels below a directory, and telling them from others.

Rule: nothing is read to find out: a relay file cannot be sought in, polls without ever being
writable, and lies on a file system that holds no data of its own.
"""

import os
import re
import select
import stat
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

from lttd.namespaces import kernel_monotonic_ns
from lttd.plausible import is_name
from lttd.subbuffer import StreamId

MOUNTINFO: Final = Path("/proc/self/mountinfo")
POSSIBLE_CPUS: Final = Path("/sys/devices/system/cpu/possible")
ONLINE_CPUS: Final = Path("/sys/devices/system/cpu/online")
# relay_file_operations may be given to any of these; relayfs is that of LTTng 0.x.
FILE_SYSTEMS: Final = frozenset({"debugfs", "proc", "relayfs", "tracefs"})


class Candidate(NamedTuple):
    """A file whose name is that of a channel with a CPU behind it."""

    path: str
    stream: StreamId
    inode: int
    device: int
    born_ns: int
    """CLOCK_REALTIME."""


def candidates(directory: str, pattern: str, cpus: int) -> Iterator[Candidate]:
    """Yield what may be a relay file below *directory*; channels are named by the way to them.

    *pattern*: a glob that the channel's name, or its last part, must match.
    """
    for parent, directories, names in os.walk(directory):
        directories.sort()
        way = os.path.relpath(parent, directory)
        if not is_name(way):  # so is no channel below, however deep that goes
            directories.clear()
            continue
        prefix = "" if way == "." else f"{way}/"
        for name in sorted(names):
            base, cpu = split_cpu(name, cpus)
            channel = prefix + base
            if cpu < 0 or not is_name(channel):
                continue
            if not (fnmatchcase(channel, pattern) or fnmatchcase(base, pattern)):
                continue
            path = os.path.join(parent, name)
            try:
                found = os.lstat(path)
            except OSError:
                continue  # it has gone
            if stat.S_ISREG(found.st_mode):
                yield Candidate(
                    path, StreamId(channel, cpu), found.st_ino, found.st_dev, found.st_ctime_ns
                )


def split_cpu(name: str, cpus: int) -> tuple[str, int]:
    """Split ``chan11`` into channel and CPU; the CPU is -1 where there is none.

    The kernel writes them one behind the other ("%s%d"), so that only the number of CPUs tells
    whether that is CPU 11 of ``chan`` or CPU 1 of ``chan1``.
    """
    digits = len(name) - len(name.rstrip("0123456789"))
    for length in range(min(digits, len(name) - 1), 0, -1):
        number = name[-length:]
        if int(number) < cpus and (number[0] != "0" or length == 1):
            return name[:-length], int(number)
    return name, -1


def why_no_relay_file(fd: int) -> str | None:
    """Return why a file of one of FILE_SYSTEMS cannot be a relay file, or None: it may be one."""
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        pass
    else:
        return "a file that can be sought in"
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    if any(events & select.POLLOUT for _, events in poll.poll(0)):
        return "a file without poll"
    return None


def file_system_of(device: int, mountinfo: Path = MOUNTINFO) -> str:
    """Return the type of the file system with this device number (proc(5), mountinfo)."""
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    # Bytes: of paths, which may be of any, only blanks and line ends are escaped.
    for line in mountinfo.read_bytes().split(b"\n"):
        words = line.split(b" ")
        if len(words) > 2 and words[2] == wanted:
            return os.fsdecode(words[words.index(b"-") + 1])
    return "an unknown file system"


def count_of_cpus(possible: Path = POSSIBLE_CPUS) -> int:
    """Return one more than the highest number that a CPU can have here."""
    return max(cpus_in(possible), default=0) + 1


def cpus_in(path: Path) -> set[int]:
    """Return the CPUs in a list such as ``0-3,7``; none where it cannot be read."""
    try:
        text = path.read_text()
    except OSError:
        return set()
    cpus: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def is_offline(cpu: int, online: Path = ONLINE_CPUS) -> bool:
    """Tell whether a CPU is known to be down; where that cannot be read, none is."""
    cpus = cpus_in(online)
    return bool(cpus) and cpu not in cpus


def monotonic_of(realtime_ns: int) -> int:
    """Return the CLOCK_MONOTONIC of a past REALTIME, as if that had not been set since."""
    return max(kernel_monotonic_ns() - max(time.time_ns() - realtime_ns, 0), 0)
