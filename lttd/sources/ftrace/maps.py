"""Save which files' code is where in the memory of processes, for the addresses of user stacks.

    <trace-clock time>\\t<process>\\t<begin>-<end>\\t<offset>\\t<build-id, or ->\\t<path>

Rule: only code is noted, and only what the segment lacks.  A process has lines again when any of
its code has moved or is new.
Rule: lttd looks at the begin of a segment, every 10 s and at the end.  A process that lived only
between two looks is missing, and so are its names.
Rule: a file of at most MOST_BYTES; further processes are left out.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from lttd.abi.elf import Elf
from lttd.errors import LttdError
from lttd.sources.tracefs import read_bytes

PROC: Final = "/proc"
MOST_BYTES: Final = 16 << 20
MOST_FILES: Final = 1 << 16
_CODE: Final = re.compile(
    rb"^([0-9a-f]+-[0-9a-f]+) ..x. ([0-9a-f]+) ([0-9a-f:]+ \d+) *(.*)$", re.MULTILINE
)
_NONE: Final = b"-"


class BuildIds:
    """The build-ids of files, each of which is read once."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}

    def of(self, inode: bytes, path: str) -> bytes:
        """Return the build-id of a file in hexadecimal, or ``-``; *inode*: device and number."""
        if inode not in self._known:
            if len(self._known) >= MOST_FILES:
                self._known.clear()
            self._known[inode] = _read_build_id(path)
        return self._known[inode]


class Maps:
    """What one segment has of the memory of processes."""

    def __init__(self, now: Callable[[], int], ids: BuildIds, proc: str = PROC) -> None:
        self._now = now
        self._ids = ids
        self._proc = proc
        self._known: dict[int, int] = {}
        """The hash of each process's code."""
        self._left_bytes = MOST_BYTES

    def new_lines(self) -> bytes:
        """Return lines of the processes whose code the segment lacks."""
        now = self._now()
        found = []
        for pid in self._processes():
            with suppress(LttdError):  # it has ended
                code = _CODE.findall(read_bytes(f"{self._proc}/{pid}/maps"))
                if not code or self._known.get(pid) == hash(tuple(code)):
                    continue
                lines = b"".join(self._lines(now, pid, code))
                if len(lines) <= self._left_bytes:
                    self._left_bytes -= len(lines)
                    self._known[pid] = hash(tuple(code))
                    found.append(lines)
        return b"".join(found)

    def _processes(self) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(self._proc) if name.isdigit())
        except OSError:
            return []

    def _lines(
        self, now: int, pid: int, code: list[tuple[bytes, bytes, bytes, bytes]]
    ) -> Iterator[bytes]:
        for where, offset, inode, path in code:
            build_id = _NONE
            if path.startswith(b"/"):
                build_id = self._ids.of(inode, f"{self._proc}/{pid}/root{os.fsdecode(path)}")
            yield b"%d\t%d\t%b\t%b\t%b\t%b\n" % (now, pid, where, offset, build_id, path)


def _read_build_id(path: str) -> bytes:
    try:
        # To open a device has effects, and a pipe makes the recorder wait.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return _NONE
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return _NONE
    try:
        return Elf(lambda at, size: os.pread(fd, size, at)).build_id().encode() or _NONE
    except (OSError, ValueError, OverflowError):
        return _NONE
    finally:
        os.close(fd)
