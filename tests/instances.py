"""tracefs instances of tests: their marks, and the counters that the kernel keeps of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lttd.sources.tracefs import parse_stats


@contextmanager
def on_cpu_0() -> Iterator[None]:
    """Pin this process to one CPU, so that all its events go to one ring."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def mark(instance: Path, text: str, times: int = 1) -> None:
    """Write *text* into the ring of CPU 0; a full ring may refuse some of the marks."""
    with on_cpu_0(), (instance / "trace_marker").open("wb", buffering=0) as marker:
        for _ in range(times):
            try:
                marker.write(text.encode())
            except OSError:  # EBADF: a full ring without overwriting refuses an event
                continue


def stats_of(instance: Path) -> dict[int, dict[str, int]]:
    """Return the counters of the kernel by CPU."""
    found = {}
    for path in instance.glob("per_cpu/cpu*/stats"):
        # One read: the kernel formats the file anew for every read.
        with path.open("rb", buffering=0) as file:
            found[int(path.parent.name[3:])] = parse_stats(file.read(4096))
    return found


def unread_events(instance: Path) -> int:
    """Return the number of events that are in the rings of all CPUs."""
    return sum(stats["entries"] for stats in stats_of(instance).values())


def read_events(instance: Path) -> int:
    """Return the number of events that readers have taken from the rings of all CPUs."""
    return sum(stats["read events"] for stats in stats_of(instance).values())
