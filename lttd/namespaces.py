"""Detect where this process and the kernel use different process ids or clocks.

Tracing ignores namespaces: the kernel records and filters by the process ids of the initial pid
namespace, and its trace clocks have no offset.  In a container a process may see other ids than the
kernel uses, and its CLOCK_MONOTONIC and CLOCK_BOOTTIME may be shifted.

Source: Linux include/linux/proc_ns.h (inodes of the initial namespaces); time_namespaces(7);
kernel/time/namespace.c, proc_timens_show_offsets().
"""

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

PID_INITIAL: Final = 0xEFFFFFFC
"""PROC_PID_INIT_INO."""
TIME_INITIAL: Final = 0xEFFFFFFA
"""PROC_TIME_INIT_INO."""
NAMESPACES: Final = Path("/proc/self/ns")
OFFSETS: Final = Path("/proc/self/timens_offsets")

_SHIFTED: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        "monotonic": (time.CLOCK_MONOTONIC, time.CLOCK_MONOTONIC_RAW),
        "boottime": (time.CLOCK_BOOTTIME,),
    }
)


def kernel_knows_our_pids(namespaces: Path = NAMESPACES) -> bool:
    """Tell whether the kernel's process ids are those that this process sees.

    Return False without /proc: then it is unknown.
    """
    return _inode(namespaces / "pid") == PID_INITIAL


def offsets_ns(namespaces: Path = NAMESPACES, offsets: Path = OFFSETS) -> Mapping[int, int]:
    """Return how many ns this process's clocks are ahead of the kernel's, by clock id."""
    here = _inode(namespaces / "time")
    # The file describes the namespace of children, which this process enters at exec or fork.
    if here in (0, TIME_INITIAL) or here != _inode(namespaces / "time_for_children"):
        return {}
    found = {}
    for line in offsets.read_text().splitlines():
        name, seconds, nanoseconds = line.split()
        for clock_id in _SHIFTED.get(name, ()):
            found[clock_id] = int(seconds) * 1_000_000_000 + int(nanoseconds)
    return found


@functools.cache
def _our_offsets_ns() -> Mapping[int, int]:
    try:
        return offsets_ns()
    except (OSError, ValueError):
        return {}


def kernel_clock_ns(clock_id: int) -> int:
    """Read a clock as the kernel does when it records."""
    return time.clock_gettime_ns(clock_id) - _our_offsets_ns().get(clock_id, 0)


def kernel_monotonic_ns() -> int:
    """Read CLOCK_MONOTONIC as the kernel does when it records."""
    return kernel_clock_ns(time.CLOCK_MONOTONIC)


def _inode(path: Path) -> int:
    """Return the inode that identifies a namespace; 0 if the kernel lacks this kind."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0
