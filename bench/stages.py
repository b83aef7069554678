"""Drain rings that were filled before as far as one stage of lttd, and count the CPU time of that.

``bench.profile`` runs this in a process of its own, which prints one JSON object.
"""

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, Final

import trio

from bench.common import cpu_s
from bench.inloop import drain
from lttd import writefile
from lttd.config import SourceSpec
from lttd.recorder import BACKLOG_BYTES
from lttd.sources.base import Nothing, Source
from lttd.sources.ftrace import raw
from lttd.sources.registry import open_source
from lttd.subbuffer import TAKE_BYTES, BufferPool

TAKE: Final = "take"
"""Take from the kernel and number the sub-buffers; write nothing."""
WHOLE: Final = "whole"
CALLS: Final = ("readv", "pwritev2")
"""Those that move the data."""
SAMPLES_PER_S: Final = 4000
# Threads of the kernel that write dirty pages to the disk.
WRITEBACK: Final = ("kworker", "jbd2", "kswapd")


class TimedCalls:
    """The C library, with the CPU time of each call noted by name."""

    def __init__(self, library: ctypes.CDLL, seconds: dict[str, list[float]]) -> None:
        self._library = library
        self._seconds = seconds

    def __getattr__(self, name: str) -> Callable[..., object]:
        call = getattr(self._library, name)

        def timed(*arguments: object) -> object:
            begin = time.thread_time()
            result = call(*arguments)
            self._seconds[name].append(time.thread_time() - begin)
            return result

        return timed


@contextlib.contextmanager
def timed_calls() -> Iterator[dict[str, list[float]]]:
    """Yield the CPU seconds of lttd's calls into the C library, which are its largest ones.

    User and system time of a process are sampled at ticks, so they say little of a short drain.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    libraries = raw._libc, writefile._libc  # noqa: SLF001  (lttd has no hook for this)
    raw._libc, writefile._libc = (TimedCalls(each, seconds) for each in libraries)  # noqa: SLF001
    try:
        yield seconds
    finally:
        raw._libc, writefile._libc = libraries  # noqa: SLF001


async def take_all(source: Source) -> dict[str, Any]:
    """Take all that *source* holds, and discard it; return the bytes and the CPU seconds."""
    source.stop()
    delivered_bytes, before = 0, getrusage(RUSAGE_SELF)
    for stream in source.streams:
        while not isinstance(taken := stream.take(flush=True), Nothing):
            delivered_bytes += taken.kernel_bytes
            taken.release()
    after = getrusage(RUSAGE_SELF)
    return {
        "cpu_s": cpu_s(after) - cpu_s(before),
        "user_s": after.ru_utime - before.ru_utime,
        "system_s": after.ru_stime - before.ru_stime,
        "delivered_bytes": delivered_bytes,
    }


def writeback_s() -> float:
    """Return the CPU time so far of the kernel's threads that write to disks."""
    used_ns = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "comm").read_text().startswith(WRITEBACK):
                used_ns += int((process / "schedstat").read_text().split()[0])
    return used_ns / 1e9


@contextlib.contextmanager
def sampled(path: Path | None) -> Iterator[None]:
    """Let perf write samples of the whole machine to *path* meanwhile; None: without perf."""
    if path is None:
        yield
        return
    control, orders = os.pipe()
    answers, answer = os.pipe()
    command = [
        *("perf", "record", "--quiet", "--all-cpus", "--call-graph", "fp", "--event", "cpu-clock"),
        *("--freq", str(SAMPLES_PER_S), "--output", str(path)),
        *("--delay", "-1", "--control", f"fd:{control},{answer}"),
    ]
    with subprocess.Popen(command, pass_fds=(control, answer), stderr=subprocess.DEVNULL) as perf:
        try:
            os.write(orders, b"enable\n")
            os.read(answers, 16)
            yield
            os.write(orders, b"disable\n")
            os.read(answers, 16)
        finally:
            perf.send_signal(signal.SIGINT)
    for fd in (control, orders, answers, answer):
        os.close(fd)


def main() -> None:
    """Drain the instance that the command line names, and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=(TAKE, WHOLE))
    parser.add_argument("instance")
    parser.add_argument("trace", type=Path)
    parser.add_argument("--perf", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    source = open_source(
        SourceSpec("ftrace", arguments.instance), BufferPool(BACKLOG_BYTES + TAKE_BYTES)
    )
    try:
        before_s = writeback_s()
        with sampled(arguments.perf), timed_calls() as calls_s:
            if arguments.stage == TAKE:
                sample = trio.run(take_all, source)
            else:
                sample = trio.run(drain, source, arguments.trace, "packed")
            os.sync()
        sample |= {"writeback_s": writeback_s() - before_s, "pid": os.getpid()}
        sample |= {f"{name}_s": sum(calls_s[name]) for name in CALLS}
        print(json.dumps(sample))
    finally:
        source.close()


if __name__ == "__main__":
    main()
