"""Make this process give way to all others: in CPU time, in disk time, and when memory runs out.

Source: sched_setscheduler(2), ioprio_set(2), proc(5); sched(7) on autogroups; which I/O schedulers
know priorities: Linux Documentation/block/ioprio.rst, and block/mq-deadline.c (322cff70d46c,
v5.18).
"""

import ctypes
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

# ioprio_set(2) has no wrapper in libc.
_IOPRIO_SET: Final = {
    "x86_64": 251,
    "aarch64": 30,
    "riscv64": 30,
    "loongarch64": 30,
    "armv7l": 314,
    "i686": 289,
    "ppc64le": 273,
    "s390x": 282,
}
_WHO_PROCESS: Final = 1
_CLASS_IDLE: Final = 3 << 13
_HONOUR_PRIORITIES: Final = ("[bfq]", "[mq-deadline]")
# A pause of less costs more than it gives.
_LEAST_PAUSE_S: Final = 0.005
_OOM_SCORE: Final = 500
_LEAST_NICE: Final = 19


def give_way() -> None:
    """Run only while nobody else wants to; what this process may not set stays as it is.

    Call it in a process that has a session of its own.
    """
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):  # for kernels that refuse the first
        os.setpriority(os.PRIO_PROCESS, 0, _LEAST_NICE)
    with suppress(OSError):
        # The kernel shares CPUs among sessions first: SCHED_IDLE counts only within one.
        Path("/proc/self/autogroup").write_text(str(_LEAST_NICE))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    call = _IOPRIO_SET.get(platform.machine())
    if call is not None:
        ctypes.CDLL(None).syscall(call, _WHO_PROCESS, 0, _CLASS_IDLE)


def idle_io_counts(device: int) -> bool:
    """Tell whether the I/O scheduler of a block device serves idle requests after all others."""
    node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for queue in (node / "queue", node.resolve().parent / "queue"):  # the latter: of a partition
        with suppress(OSError):
            return any(name in (queue / "scheduler").read_text() for name in _HONOUR_PRIORITIES)
    return False


class Pauses:
    """Sleep as long as I/O took, so that a slow disk serves this process at most half the time."""

    def __init__(self) -> None:
        self._owed_s = 0.0

    def after(self, io_seconds: float) -> None:
        """Sleep for what is owed, if it is worth it."""
        self._owed_s += io_seconds
        if self._owed_s >= _LEAST_PAUSE_S:
            time.sleep(self._owed_s)
            self._owed_s = 0.0
