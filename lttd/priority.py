"""Let lttd run before other programs, so that busy CPUs do not delay the reading.

All threads get the same priority, because they share the interpreter lock: a real-time reader would
wait for an ordinary thread that holds the lock and is not scheduled.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from lttd.errors import UsageError

FIRST_NICE: Final = -20
"""A ring of 1 MiB is full after 7 ms, and a busy CPU lets an ordinary program wait for as long.  A
nice value changes whose turn is next; lttd needs no more CPU time by it."""


def run_before_ordinary() -> None:
    """Give this thread, and threads that it starts, a nice value below that of other programs.

    Nothing changes without CAP_SYS_NICE, or if somebody started lttd at another nice value than 0.
    """
    if os.getpriority(os.PRIO_PROCESS, 0) == 0:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, FIRST_NICE)


def thread_ids() -> list[int]:
    """Return the kernel's ids of this process's threads."""
    return [int(name) for name in os.listdir("/proc/self/task")]  # noqa: PTH208  (names only)


def raise_priority(threads: Iterable[int], priority: int) -> None:
    """Give *threads* SCHED_FIFO at *priority*; their children (COMMAND) do not inherit it.

    Raises:
        UsageError: the kernel refuses, with the remedy.
    """
    policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    try:
        for thread in threads:
            os.sched_setscheduler(thread, policy, os.sched_param(priority))
    except PermissionError:
        raise UsageError(
            f"--priority {priority}: refused; it takes root or CAP_SYS_NICE, and as a service "
            "RestrictRealtime=no"
        ) from None
