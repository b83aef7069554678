"""Runs a function in a child process with limits of time and memory, and says how that ended."""

import os
import pickle
import resource
import select
import signal
import traceback
from collections.abc import Callable
from typing import Final, NamedTuple

MOST_SECONDS: Final = 10
MOST_BYTES: Final = 1 << 30


class Ended(NamedTuple):
    """How a function ended."""

    well: bool
    told: str
    """What it returned, as text; else the traceback, or how the child ended."""


def limit_memory(most_bytes: int = MOST_BYTES) -> None:
    """Let this process allocate *most_bytes* more; mapped files do not count."""
    with open("/proc/self/status") as status:
        used_kb = next(int(line.split()[1]) for line in status if line.startswith("VmData"))
    most = (used_kb << 10) + most_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))


def confined(act: Callable[[], object], *, most_seconds: float = MOST_SECONDS) -> Ended:
    """Run *act* in a child that has 1 GiB of memory and *most_seconds*."""
    mine, its = os.pipe()
    child = os.fork()
    if not child:
        os.close(mine)
        _answer(act, its)
    os.close(its)
    try:
        ready, _, _ = select.select([mine], [], [], most_seconds)
        if not ready:
            os.kill(child, signal.SIGKILL)
        with open(mine, "rb") as answers:
            answer = answers.read()
    finally:
        _, status = os.waitpid(child, 0)
    if not ready:
        return Ended(False, f"not over after {most_seconds} s")
    if not answer:
        return Ended(False, f"the process ended with status {status}")
    return Ended(*pickle.loads(answer))


def _answer(act: Callable[[], object], to: int) -> None:
    """Run *act*, write how it ended, and end the process."""
    limit_memory()
    try:
        answer = Ended(True, str(act()))
    except BaseException:  # noqa: BLE001  (reported by the parent)
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
        answer = Ended(False, traceback.format_exc())
    os.write(to, pickle.dumps((answer.well, answer.told[-20000:])))
    os._exit(0)
