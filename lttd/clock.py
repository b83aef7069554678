"""Clock snapshots: how a trace clock is told in wall-clock time, and back.

Rule: conversion is piecewise linear between snapshots; beyond them the nearest one's offset holds.
Rule: where REALTIME was set, or went on while a suspended machine's trace clock stood still, that
is a jump at the snapshot that was taken thereafter, never a slope that times before it lie on.
"""

import ctypes
import errno
import os
import struct
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final, NamedTuple

from lttd.namespaces import kernel_clock_ns

# The trace clocks that user space can read, and how.
READABLE: Final[dict[str, int]] = {
    "mono": time.CLOCK_MONOTONIC,
    "boot": time.CLOCK_BOOTTIME,
    "mono_raw": time.CLOCK_MONOTONIC_RAW,
    "tai": time.CLOCK_TAI,
}
COUNTING_CLOCKS: Final = frozenset({"counter", "x86-tsc", "uptime"})
"""Trace clocks whose unit is not the nanosecond."""
ATTEMPTS: Final = 5
# Clocks that came apart by more than this between two snapshots did not drift: one was set.
STEP_NS: Final = 1_000_000
# How much faster or slower than MONOTONIC a clock in ns may run, as one in so many.
DRIFT: Final = 1000
# A segment keeps at most so many snapshots: one a minute would fill a manifest in three months.
MOST_SNAPSHOTS: Final = 1024
# A snapshot that a line between its neighbours meets so closely is not needed.
NEAR_NS: Final = 100_000


class Snapshot(NamedTuple):
    """The clocks at one moment, in ns; the trace clock in its own units."""

    trace: int
    monotonic_ns: int
    boottime_ns: int
    realtime_ns: int
    uncertainty_ns: int

    def to_json(self) -> dict[str, int]:
        """Return the snapshot as an object of the manifest."""
        return {name: getattr(self, name) for name in self._fields}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Snapshot":
        """Return the snapshot of an object that to_json() made."""
        return cls(**{name: int(value[name]) for name in cls._fields})


def take_snapshot(read_trace_clock: Callable[[], int]) -> Snapshot:
    """Read all clocks between two reads of REALTIME; keep the fastest of a few attempts."""
    best: Snapshot | None = None
    for _ in range(ATTEMPTS):
        before_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        trace = read_trace_clock()
        monotonic_ns = kernel_clock_ns(time.CLOCK_MONOTONIC)
        boottime_ns = kernel_clock_ns(time.CLOCK_BOOTTIME)
        after_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        width_ns = after_ns - before_ns
        if width_ns < 0 and best is not None:
            continue  # REALTIME was set back meanwhile
        middle_ns = before_ns + width_ns // 2
        if best is None or width_ns < best.uncertainty_ns or best.uncertainty_ns < 0:
            best = Snapshot(trace, monotonic_ns, boottime_ns, middle_ns, width_ns)
    assert best is not None
    return best


def thinned(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Return at most half of MOST_SNAPSHOTS, in order; those that bend the lines most stay.

    So a moment at which a clock was set, or the machine slept, is among the last to go.
    """
    kept, near_ns = list(snapshots), NEAR_NS
    while len(kept) > MOST_SNAPSHOTS // 2:
        kept = list(_without_needless(kept, near_ns))
        near_ns *= 2
    return kept


def _without_needless(snapshots: Sequence[Snapshot], near_ns: int) -> Iterator[Snapshot]:
    """Yield the first, the last, and those in between that are needed; no two in a row go."""
    before: Snapshot | None = snapshots[0]
    yield snapshots[0]
    for middle, after in pairwise(snapshots[1:]):
        if before is not None and _is_near(before, middle, after, near_ns):
            before = None
            continue
        before = middle
        yield middle
    yield snapshots[-1]


def _is_near(before: Snapshot, middle: Snapshot, after: Snapshot, near_ns: int) -> bool:
    """Tell whether all clocks of *middle* are near the lines from *before* to *after*."""
    run = max(after.trace - before.trace, 1)
    part = middle.trace - before.trace
    return all(
        abs(at(before) + part * (at(after) - at(before)) // run - at(middle)) <= near_ns
        for at in _CLOCKS
    )


_CLOCKS: Final = tuple(map(attrgetter, ("monotonic_ns", "boottime_ns", "realtime_ns")))


class _Piece(NamedTuple):
    """A straight line between two snapshots; the next one need not begin at its end."""

    begin: int
    """Trace clock."""
    end: int
    begin_ns: int
    """REALTIME."""
    end_ns: int


class Conversion:
    """From trace-clock units to REALTIME ns and back, by the snapshots of a segment."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        if not snapshots:
            raise ValueError("no clock snapshots")
        known = _forward_only(snapshots)
        self._first, self._last = known[0], known[-1]
        self._pieces = [_piece(before, after) for before, after in pairwise(known)]
        self._begins = [piece.begin for piece in self._pieces]
        self._slope = _slope(self._pieces)

    def to_realtime_ns(self, trace: int) -> int:
        """Return the wall-clock time of *trace*."""
        run, rise = self._slope
        if trace < self._first.trace:
            return self._first.realtime_ns - (self._first.trace - trace) * rise // run
        if trace >= self._last.trace:
            return self._last.realtime_ns + (trace - self._last.trace) * rise // run
        piece = self._pieces[bisect_right(self._begins, trace) - 1]
        rise, run = piece.end_ns - piece.begin_ns, piece.end - piece.begin
        return piece.begin_ns + (trace - piece.begin) * rise // run

    def to_trace(self, realtime_ns: int) -> int:
        """Return the trace-clock time at which the wall clock first showed *realtime_ns*.

        If the wall clock was set forward over it, return the time when it was set.
        """
        for piece in self._pieces:
            if piece.begin_ns <= realtime_ns < piece.end_ns:
                return _place(piece, realtime_ns)
        run, rise = self._slope
        if realtime_ns >= self._last.realtime_ns:
            return self._last.trace + (realtime_ns - self._last.realtime_ns) * run // rise
        if realtime_ns < self._first.realtime_ns:
            return self._first.trace - (self._first.realtime_ns - realtime_ns) * run // rise
        later = (piece.begin for piece in self._pieces if piece.begin_ns > realtime_ns)
        return next(later, self._last.trace)


def _forward_only(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Return the snapshots in order, without those at which the trace clock had not advanced."""
    known: list[Snapshot] = []
    for snapshot in sorted(snapshots, key=lambda each: each.boottime_ns):
        if not known or snapshot.trace > known[-1].trace:
            known.append(snapshot)
    return known


def _piece(before: Snapshot, after: Snapshot) -> _Piece:
    """Return the line of REALTIME from one snapshot to the next, or to when it was set."""
    passed_ns = after.monotonic_ns - before.monotonic_ns
    with_sleep_ns = after.boottime_ns - before.boottime_ns
    suspended = with_sleep_ns - passed_ns > STEP_NS
    went_on = after.trace - before.trace
    off_ns = abs(went_on - passed_ns)
    stood_still = off_ns <= min(STEP_NS + passed_ns // DRIFT, abs(went_on - with_sleep_ns))
    if suspended and not stood_still:
        passed_ns = with_sleep_ns
    end_ns = after.realtime_ns
    if abs(end_ns - before.realtime_ns - passed_ns) > STEP_NS:
        end_ns = before.realtime_ns + passed_ns
    return _Piece(before.trace, after.trace, before.realtime_ns, end_ns)


def _place(piece: _Piece, realtime_ns: int) -> int:
    rise, run = piece.end_ns - piece.begin_ns, piece.end - piece.begin
    # Rounded up, so that the wall clock already shows it at the result.
    return piece.begin - (piece.begin_ns - realtime_ns) * run // rise


def _slope(pieces: Sequence[_Piece]) -> tuple[int, int]:
    """Return trace-clock units and the ns that they last; (1, 1) if the units are ns."""
    run = sum(piece.end - piece.begin for piece in pieces)
    rise = sum(piece.end_ns - piece.begin_ns for piece in pieces)
    if rise <= 0 or abs(rise - run) <= run // DRIFT + STEP_NS:
        return 1, 1
    return run, rise


_TIMER_ABSTIME_CANCEL_ON_SET: Final = 3
_NEVER_S: Final = 1 << 40
_libc: Final = ctypes.CDLL(None, use_errno=True)


class ClockWatch:
    """A descriptor that is readable when REALTIME was set or the machine was suspended.

    timerfd_create(2), TFD_TIMER_CANCEL_ON_SET; Python has it from 3.13 on.
    """

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        self._arm()

    def _arm(self) -> None:
        # struct itimerspec: interval and value, each in s and ns.
        never = struct.pack("@4l", 0, 0, _NEVER_S, 0)
        while _libc.timerfd_settime(self.fd, _TIMER_ABSTIME_CANCEL_ON_SET, never, None):
            number = ctypes.get_errno()
            # The clock was set again since the last read: ECANCELED comes once, then it is armed.
            if number != errno.ECANCELED:
                raise OSError(number, os.strerror(number))

    def was_set(self) -> bool:
        """Tell whether the clock was set, or the machine suspended, since the last call."""
        try:
            os.read(self.fd, 8)
        except OSError as error:
            if error.errno == errno.ECANCELED:
                self._arm()
                return True
        return False

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
