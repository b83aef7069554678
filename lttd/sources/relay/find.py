"""Find the per-CPU files of relay channels below a directory, and tell them from other files.

Rule: lttd reads nothing to find out.  A relay file cannot seek, polls without ever being writable,
and is on a file system that holds no data of its own.
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
# A module may use relay_file_operations on any of these; relayfs is that of LTTng 0.x.
FILE_SYSTEMS: Final = frozenset({"debugfs", "proc", "relayfs", "tracefs"})


class Candidate(NamedTuple):
    """A file whose name is that of a channel, followed by a CPU number."""

    path: str
    stream: StreamId
    inode: int
    device: int
    born_ns: int
    """CLOCK_REALTIME."""


def candidates(directory: str, pattern: str, cpus: int) -> Iterator[Candidate]:
    """Yield files below *directory* that may be relay files; a channel's name is its path there.

    *pattern* is a glob that the channel's name, or its last part, must match.
    """
    for parent, directories, names in os.walk(directory):
        directories.sort()
        way = os.path.relpath(parent, directory)
        if not is_name(way):  # then no channel below has a valid name either
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
                continue  # it was removed meanwhile
            if stat.S_ISREG(found.st_mode):
                yield Candidate(
                    path, StreamId(channel, cpu), found.st_ino, found.st_dev, found.st_ctime_ns
                )


def split_cpu(name: str, cpus: int) -> tuple[str, int]:
    """Split ``chan11`` into channel and CPU; the CPU is -1 if there is no number.

    The kernel writes one after the other ("%s%d").  Only the number of CPUs shows whether that is
    CPU 11 of ``chan`` or CPU 1 of ``chan1``.
    """
    digits = len(name) - len(name.rstrip("0123456789"))
    for length in range(min(digits, len(name) - 1), 0, -1):
        number = name[-length:]
        if int(number) < cpus and (number[0] != "0" or length == 1):
            return name[:-length], int(number)
    return name, -1


def why_no_relay_file(fd: int) -> str | None:
    """Return why a file on one of FILE_SYSTEMS cannot be a relay file; None if it may be one."""
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        pass
    else:
        return "a file that can seek"
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    if any(events & select.POLLOUT for _, events in poll.poll(0)):
        return "a file without poll"
    return None


def file_system_of(device: int, mountinfo: Path = MOUNTINFO) -> str:
    """Return the type of the file system with this device number (proc(5), mountinfo)."""
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    # As bytes: a path may hold any bytes; the kernel escapes only blanks and line ends.
    for line in mountinfo.read_bytes().split(b"\n"):
        words = line.split(b" ")
        if len(words) > 2 and words[2] == wanted:
            return os.fsdecode(words[words.index(b"-") + 1])
    return "an unknown file system"


def count_of_cpus(possible: Path = POSSIBLE_CPUS) -> int:
    """Return one more than the highest possible CPU number of this machine."""
    return max(cpus_in(possible), default=0) + 1


def cpus_in(path: Path) -> set[int]:
    """Return the CPUs in a file with a list such as ``0-3,7``; none if it cannot be read."""
    try:
        text = path.read_text()
    except OSError:
        return set()
    cpus: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def is_offline(cpu: int, online: Path = ONLINE_CPUS) -> bool:
    """Tell whether a CPU is offline; if that cannot be read, assume that it is online."""
    cpus = cpus_in(online)
    return bool(cpus) and cpu not in cpus


def monotonic_of(realtime_ns: int) -> int:
    """Convert a past REALTIME to CLOCK_MONOTONIC, assuming that nobody set the clock since."""
    return max(kernel_monotonic_ns() - max(time.time_ns() - realtime_ns, 0), 0)
