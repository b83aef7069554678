"""Real-time priority for lttd's threads, so that CPU hogs do not keep it from the rings.

All of them get it, not only the reading one: they share the interpreter, and a real-time reader
would wait for whichever ordinary thread holds it and is not scheduled.
"""

import os
from collections.abc import Iterable

from lttd.errors import UsageError


def thread_ids() -> list[int]:
    """Return the ids of this process's threads, as the kernel counts them."""
    return [int(name) for name in os.listdir("/proc/self/task")]  # noqa: PTH208  (names only)


def raise_priority(threads: Iterable[int], priority: int) -> None:
    """Give *threads* SCHED_FIFO at *priority*; what they start (COMMAND) does not inherit it.

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
