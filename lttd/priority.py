"""Give lttd's threads real-time priority, so that busy CPUs do not delay the reading.

All threads get it, because they share the interpreter lock: a real-time reader would wait for an
ordinary thread that holds the lock and is not scheduled.
"""

import os
from collections.abc import Iterable

from lttd.errors import UsageError


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
