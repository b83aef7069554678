"""Read the names of tasks, once for all sources that need them at about the same time.

Rule: no source gets the same names twice, nor names from before it was stopped or rolled.
Otherwise they may be SHARED_NS old: a later look finds what they lack.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from lttd.errors import LttdError
from lttd.namespaces import kernel_knows_our_pids
from lttd.sources.tracefs import read_bytes

SHARED_NS: Final = 1_000_000_000
Name = tuple[bytes, bytes]
"""Thread group and command of a task."""


@dataclass(frozen=True)
class TaskNames:
    """The names of tasks at one moment."""

    read_ns: int
    """When reading them began, on CLOCK_MONOTONIC."""
    living: dict[int, Name]
    """Of all threads; empty in a pid namespace whose ids the kernel's trace does not know."""
    saved: Set[bytes]
    """The lines of ``saved_cmdlines``."""
    _root: str

    def ended(self, lines: Set[bytes]) -> dict[int, Name]:
        """Return the names in *lines* of saved_cmdlines whose tasks do not live."""
        return {
            pid: (self._tgids.get(b"%d" % pid, b""), name)
            for pid, name in _pairs(lines)
            if pid not in self.living and name != b"<...>"
        }

    @cached_property
    def _tgids(self) -> Mapping[bytes, bytes]:
        """The thread group of each pid; the kernel's file of them may have 32,768 lines."""
        words = _read(f"{self._root}/saved_tgids").split()
        return dict(zip(words[::2], words[1::2], strict=False))


class NameReader:
    """Remembers the names that were read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: TaskNames | None = None

    def read(self, root: str, since_ns: int) -> TaskNames:
        """Return names that were read not before *since_ns*, nor long ago; *root* is tracefs."""
        with self._lock:
            now_ns, last = time.monotonic_ns(), self._last
            is_old = last is None or last.read_ns < max(since_ns, now_ns - SHARED_NS)
            if last is None or is_old or last._root != root:  # noqa: SLF001  (same module)
                living = dict(_tasks()) if kernel_knows_our_pids() else {}
                saved = frozenset(_read(f"{root}/saved_cmdlines").splitlines())
                last = self._last = TaskNames(now_ns, living, saved, root)
            return last


NAMES: Final = NameReader()
"""Of this process: all sources see the same tasks."""


def is_copy_of_this_process(pid: int) -> bool:
    """Tell whether a child of this process has not become another program yet."""
    try:
        return read_bytes(f"/proc/{pid}/cmdline") == read_bytes("/proc/self/cmdline")
    except LttdError:
        return False


def _read(path: str) -> bytes:
    try:
        return read_bytes(path)
    except LttdError:
        return b""


def _pairs(lines: Set[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield (pid, the rest) of each line."""
    for line in lines:
        pid, _, rest = line.partition(b" ")
        if pid.isdigit():
            yield int(pid), rest


def _tasks() -> Iterator[tuple[int, Name]]:
    """Yield (pid, (tgid, command)) of every thread (97 threads take 2 ms)."""
    for process in os.listdir("/proc"):
        if not process.isdigit():
            continue
        try:
            threads = os.listdir(f"/proc/{process}/task")
        except OSError:
            continue  # the thread ended meanwhile
        for thread in threads:
            try:
                fd = os.open(f"/proc/{process}/task/{thread}/comm", os.O_RDONLY)
                try:
                    command = os.read(fd, 256)
                finally:
                    os.close(fd)
            except OSError:
                continue
            yield int(thread), (process.encode(), command.removesuffix(b"\n"))
