"""State in Perfetto's terms on which clock the events of a recording are.

Perfetto knows clocks by number, converts all times to one of them (the primary trace clock, which
is BOOTTIME if nobody says otherwise), and takes the offsets from ClockSnapshots.  So that its times
are those of lttv, the primary clock is the trace clock, where Perfetto has a number for it:

    boot       BOOTTIME, the clock of a bundle that states none
    mono_raw   MONOTONIC_RAW, which a bundle can state
    mono       MONOTONIC; a bundle cannot state it, so it states a clock of its sequence, which the
               snapshots set equal to MONOTONIC
    others     a clock of the sequence; times become those of BOOTTIME

Source: Perfetto's protos/perfetto/trace/clock_snapshot.proto, protos/perfetto/common/
builtin_clock.proto, protos/perfetto/trace/ftrace/ftrace_event_bundle.proto;
src/trace_processor/importers/ftrace/ftrace_tokenizer.cc, HandleFtraceClockSnapshot.

Rule: without clock snapshots the times are stated as those of BOOTTIME.
Rule: of a clock that becomes BOOTTIME only snapshots at which both came apart by more than STEP_NS
are written: each one more would bend the durations around it.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from lttd.clock import STEP_NS, Snapshot
from lttd.view.export.protobuf import content, number
from lttd.view.library import ClockGroup

REALTIME, MONOTONIC, MONOTONIC_RAW, BOOTTIME = 1, 3, 5, 6
_OF_SEQUENCE: Final = 64
"""The clock of a sequence that a bundle with _GLOBAL or _LOCAL states: kSequenceScopedClockId."""
_GLOBAL, _LOCAL, _MONO_RAW = 2, 3, 4
_CLOCKS, _PRIMARY = 1, 2
_OF_BUNDLE: Final = 5


class Clock(NamedTuple):
    """The clock of a recording, as fields of messages."""

    of_bundle: bytes
    """The field of a FtraceEventBundle."""
    of_packet: int | None
    """The number for ``timestamp_clock_id`` of a packet; None: it need not state one."""
    snapshots: Sequence[bytes]
    """Messages ClockSnapshot, in the order of time."""


def clock_of(group: ClockGroup) -> Clock:
    """Return the clock of a group's events."""
    snapshots = list(_near(group))
    name = group.segments[0].manifest.clock
    if name == "boot" or not snapshots:
        return Clock(b"", None, [_snapshot(each, {BOOTTIME: each.trace}) for each in snapshots])
    if name == "mono_raw":
        told = [_snapshot(each, {MONOTONIC_RAW: each.trace}, MONOTONIC_RAW) for each in snapshots]
        return Clock(number(_OF_BUNDLE, _MONO_RAW), MONOTONIC_RAW, told)
    of_bundle = number(_OF_BUNDLE, _LOCAL if name == "local" else _GLOBAL)
    if name == "mono":
        told = [
            _snapshot(each, {_OF_SEQUENCE: each.trace, MONOTONIC: each.trace}, MONOTONIC)
            for each in snapshots
        ]
    else:
        told = [_snapshot(each, {_OF_SEQUENCE: each.trace}) for each in _steps(snapshots)]
    return Clock(of_bundle, _OF_SEQUENCE, told)


def _near(group: ClockGroup) -> Iterator[Snapshot]:
    """Yield the snapshots of a window and one on each side; trace clock and BOOTTIME advance."""
    every = {each for segment in group.segments for each in segment.manifest.clock_snapshots}
    ordered = sorted(every, key=lambda each: (each.trace, each.boottime_ns))
    before = [at for at, each in enumerate(ordered) if each.trace <= group.begin]
    after = [at for at, each in enumerate(ordered) if each.trace >= group.end]
    last: Snapshot | None = None
    for each in ordered[before[-1] if before else 0 : after[0] + 1 if after else None]:
        if last is None or (each.trace > last.trace and each.boottime_ns > last.boottime_ns):
            yield each
            last = each


def _steps(snapshots: Sequence[Snapshot]) -> Iterator[Snapshot]:
    kept_ns: int | None = None
    for each in snapshots:
        apart_ns = each.boottime_ns - each.trace
        if kept_ns is None or abs(apart_ns - kept_ns) > STEP_NS:
            yield each
            kept_ns = apart_ns


def _snapshot(snapshot: Snapshot, stated: dict[int, int], primary: int | None = None) -> bytes:
    """Return a message ClockSnapshot: all clocks, of which some are *stated* exactly."""
    clocks = {
        BOOTTIME: snapshot.boottime_ns,
        MONOTONIC: snapshot.monotonic_ns,
        REALTIME: snapshot.realtime_ns,
    }
    told = b"".join(
        content(_CLOCKS, number(1, clock) + number(2, value))
        for clock, value in (clocks | stated).items()
    )
    return told + (number(_PRIMARY, primary) if primary is not None else b"")
