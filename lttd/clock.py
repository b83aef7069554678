"""Clock snapshots: how a trace clock is told in wall-clock time, and back.

Rule: conversion is piecewise linear between snapshots; beyond them the nearest one's offset holds.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

# The trace clocks that user space can read, and how.
READABLE: Final[dict[str, int]] = {
    "mono": time.CLOCK_MONOTONIC,
    "boot": time.CLOCK_BOOTTIME,
    "mono_raw": time.CLOCK_MONOTONIC_RAW,
    "tai": time.CLOCK_TAI,
}
ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The clocks at one moment, in ns; the trace clock in its own units."""

    trace: int
    monotonic_ns: int
    boottime_ns: int
    realtime_ns: int
    uncertainty_ns: int

    def to_json(self) -> dict[str, int]:
        """Return what a manifest keeps."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Snapshot":
        """Read back what to_json() made."""
        return cls(**{name: int(value[name]) for name in cls.__slots__})


def take_snapshot(read_trace_clock: Callable[[], int]) -> Snapshot:
    """Read all clocks, between two reads of REALTIME; the tightest of a few attempts is kept."""
    best: Snapshot | None = None
    for _ in range(ATTEMPTS):
        before_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        trace = read_trace_clock()
        monotonic_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        boottime_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        after_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        width_ns = max(after_ns - before_ns, 0)
        middle_ns = before_ns + width_ns // 2
        if best is None or width_ns < best.uncertainty_ns:
            best = Snapshot(trace, monotonic_ns, boottime_ns, middle_ns, width_ns)
    assert best is not None
    return best


class Conversion:
    """From trace-clock units to REALTIME ns and back, by the snapshots of a segment."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        if not snapshots:
            raise ValueError("no clock snapshots")
        self._by_trace = sorted(snapshots, key=lambda s: s.trace)
        self._by_real = sorted(snapshots, key=lambda s: s.realtime_ns)

    def to_realtime_ns(self, trace: int) -> int:
        """Return the wall-clock time of *trace*."""
        points = [(s.trace, s.realtime_ns) for s in self._by_trace]
        return _interpolate(points, trace)

    def to_trace(self, realtime_ns: int) -> int:
        """Return the trace-clock time of *realtime_ns*."""
        points = [(s.realtime_ns, s.trace) for s in self._by_real]
        return _interpolate(points, realtime_ns)


def _interpolate(points: list[tuple[int, int]], x: int) -> int:
    """Follow the broken line through *points*, with a slope of one beyond its ends, in integers."""
    at = bisect_right(points, (x, 1 << 64))
    if at == 0:
        return points[0][1] + (x - points[0][0])
    if at == len(points):
        return points[-1][1] + (x - points[-1][0])
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    return y0 + (x - x0) * (y1 - y0) // (x1 - x0) if x1 > x0 else y0
