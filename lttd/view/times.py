"""Parse T of the command line into a moment, place it on each segment's trace clock, print it.

    3305.495834739              seconds on the trace clock
    06:57:47.5                  wall clock, UTC, on the day the trace begins (or the next)
    2026-11-23T06:57:47.5Z      wall clock; UTC unless it names an offset
    @1795417067.5               wall clock, seconds since 1970
    1795417067.5                the same, if no time of the trace clock is so late (30 years)
    +1.5s  -200ms  -10m         from the begin, or the end, of the trace
                                (d, h, m, s, ms, us, ns; none: s)

Rule: times are integers; no digit of a nanosecond is lost to a float.
Invariant: a window includes both ends: an event at T is in a window that begins or ends at T.
"""

import datetime as dt
import re
from typing import Final, NamedTuple

from lttd.clock import COUNTING_CLOCKS
from lttd.errors import UsageError
from lttd.view.trace import Segment, Span, Trace

ALWAYS_END: Final = (1 << 64) - 1

_SECOND_NS: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * _SECOND_NS
_UNITS_NS: Final = {
    "": _SECOND_NS, "d": _DAY_NS, "h": 3600 * _SECOND_NS, "m": 60 * _SECOND_NS, "s": _SECOND_NS,
    "ms": 1_000_000, "us": 1_000, "ns": 1,
}  # fmt: skip
# No trace clock that begins with the machine gets there; seconds since 1970 were there in 2001.
_OF_EPOCH_NS: Final = 1_000_000_000 * _SECOND_NS
# No clock of 64 bits needs more digits, and int() takes 4,300 at most.
_FRACTION: Final = r"(?:\.(?P<fraction>\d{1,20}))?"
_NUMBER: Final = rf"(?P<whole>\d{{1,20}}){_FRACTION}"
_RELATIVE: Final = rf"(?P<sign>[+-]){_NUMBER}(?P<unit>|{'|'.join(filter(None, _UNITS_NS))})"
_OF_EPOCH: Final = rf"@{_NUMBER}"
_OF_DAY: Final = rf"(?P<h>\d{{1,2}}):(?P<m>\d\d)(?::(?P<whole>\d\d){_FRACTION})?"
_ISO: Final = (
    r"(?P<date>\d{4}-\d\d-\d\d)"
    rf"(?:[T ](?P<time>[\d:]+){_FRACTION}(?P<zone>Z|[+-][\d:]+)?)?"
)


class Moment(NamedTuple):
    """A point in time that every segment can place on its own trace clock."""

    value: int
    """Trace-clock units, or ns of REALTIME."""
    wall: bool

    def in_segment(self, segment: Segment) -> int:
        """Return the moment on *segment*'s trace clock; 0 if it is before that clock began.

        Raises:
            UsageError: it is a wall-clock time, and the segment has no clock snapshot.
        """
        if not self.wall:
            return self.value
        if segment.conversion is None:
            name = segment.paths.directory.name
            raise UsageError(
                f"{name}: has no clock snapshot; write times in seconds of the trace clock"
            )
        return min(max(segment.conversion.to_trace(self.value), 0), ALWAYS_END)


class Window(NamedTuple):
    """A span from one moment to another, both included; None: the begin or end of the trace."""

    begin: Moment | None = None
    end: Moment | None = None

    @property
    def everything(self) -> bool:
        """Tell whether the window is unlimited."""
        return self.begin is None and self.end is None

    def bounds(self, segment: Segment) -> tuple[int, int]:
        """Return the window on *segment*'s trace clock, both ends included."""
        begin = self.begin.in_segment(segment) if self.begin else 0
        end = self.end.in_segment(segment) if self.end else ALWAYS_END
        return begin, end


EVERYTHING: Final = Window()


def window_of(trace: Trace, begin: str | None, end: str | None) -> Window:
    """Return the window of the options ``--begin`` and ``--end``.

    Raises:
        UsageError: one of them is not a time, or the end is before the begin.
    """
    window = Window(
        parse_moment(begin, trace) if begin is not None else None,
        parse_moment(end, trace) if end is not None else None,
    )
    if window.begin and window.end:
        bounds = [window.bounds(segment) for segment in trace.segments]
        if all(last < first for first, last in bounds):
            raise UsageError(f"--end {end} is before --begin {begin}")
    return window


def parse_moment(text: str, trace: Trace) -> Moment:
    """Parse T as a moment of *trace*.

    Raises:
        UsageError: it is not a time, or is relative and the trace is empty.
    """
    if found := re.fullmatch(_NUMBER, text):
        value = _scaled_ns(found, _SECOND_NS)
        return Moment(value, wall=value >= _OF_EPOCH_NS and _ends_before(trace, _OF_EPOCH_NS))
    if found := re.fullmatch(_OF_EPOCH, text):
        return Moment(_scaled_ns(found, _SECOND_NS), wall=True)
    if found := re.fullmatch(_RELATIVE, text):
        return _relative(found, trace)
    if found := re.fullmatch(_OF_DAY, text):
        return _of_day(found, text, trace)
    if found := re.fullmatch(_ISO, text):
        return Moment(_iso_ns(found, text), wall=True)
    raise _no_time(text)


def _no_time(text: str) -> UsageError:
    forms = "seconds of the trace clock, HH:MM:SS, YYYY-MM-DDTHH:MM:SS, @SECONDS, +1.5s or -10m"
    return UsageError(f"{text!r} is not a valid time; write {forms}")


def _scaled_ns(found: re.Match[str], unit_ns: int) -> int:
    """Return number times unit; cut off digits beyond the nanosecond."""
    digits = found["fraction"] or ""
    scale = int("1" + "0" * len(digits))
    return (int(found["whole"]) * scale + int(digits or 0)) * unit_ns // scale


def _ends_before(trace: Trace, time_ns: int) -> bool:
    """Tell whether each trace clock counts ns, ended before *time_ns*, and has a wall clock."""
    clocks = {segment.manifest.clock for segment in trace.segments}
    ends = [one.end for one in trace.spans if one.end_realtime_ns is not None]
    return (
        len(ends) == len(trace.spans) > 0 and max(ends) < time_ns and not clocks & COUNTING_CLOCKS
    )


def _relative(found: re.Match[str], trace: Trace) -> Moment:
    span = _span(trace, found[0])
    forward = found["sign"] == "+"
    distance_ns = _scaled_ns(found, _UNITS_NS[found["unit"]])
    offset = distance_ns if forward else -distance_ns
    clocks = {segment.manifest.clock for segment in trace.segments}
    if trace.one_clock and not clocks & COUNTING_CLOCKS:
        return Moment(max((span.begin if forward else span.end) + offset, 0), wall=False)
    wall_ns = span.begin_realtime_ns if forward else span.end_realtime_ns
    if wall_ns is None:
        raise UsageError(f"{found[0]}: the trace has no clock snapshot to count from")
    return Moment(wall_ns + offset, wall=True)


def _of_day(found: re.Match[str], text: str, trace: Trace) -> Moment:
    span = _span(trace, text)
    if span.begin_realtime_ns is None or span.end_realtime_ns is None:
        raise UsageError(f"{text}: the trace has no clock snapshot, so its day is unknown")
    hours, minutes = int(found["h"]), int(found["m"])
    of_minute_ns = _scaled_ns(found, _SECOND_NS) if found["whole"] else 0
    if hours > 23 or minutes > 59 or of_minute_ns >= 60 * _SECOND_NS:
        raise _no_time(text)
    of_day_ns = (hours * 60 + minutes) * 60 * _SECOND_NS + of_minute_ns
    wall_ns = span.begin_realtime_ns // _DAY_NS * _DAY_NS + of_day_ns
    if wall_ns < span.begin_realtime_ns and wall_ns + _DAY_NS <= span.end_realtime_ns:
        wall_ns += _DAY_NS
    return Moment(wall_ns, wall=True)


def _iso_ns(found: re.Match[str], text: str) -> int:
    zone = (found["zone"] or "Z").replace("Z", "+00:00")
    try:
        moment = dt.datetime.fromisoformat(f"{found['date']}T{found['time'] or '00:00:00'}{zone}")
    except ValueError:
        raise _no_time(text) from None
    since_epoch = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    whole_s = since_epoch.days * 86_400 + since_epoch.seconds
    return whole_s * _SECOND_NS + int((found["fraction"] or "0").ljust(9, "0")[:9])


def _span(trace: Trace, text: str) -> Span:
    if trace.span is None:
        raise UsageError(f"{text}: the trace is empty, so this time has no meaning")
    return trace.span


def utc(realtime_ns: int | None) -> str | None:
    """Return a wall-clock time as ISO 8601 in UTC, with nine digits after the point."""
    if realtime_ns is None:
        return None
    whole_s, rest_ns = divmod(realtime_ns, 1_000_000_000)
    try:
        whole = dt.datetime.fromtimestamp(whole_s, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{rest_ns:09d}Z"


def seconds(time_ns: int) -> str:
    """Return ns as seconds, exactly."""
    sign = "-" if time_ns < 0 else ""
    whole_s, rest_ns = divmod(abs(time_ns), 1_000_000_000)
    return f"{sign}{whole_s}.{rest_ns:09d}"


def moment_text(trace_time: int, realtime_ns: int | None) -> str:
    """Return a time for people: of the trace clock, and of the wall clock if that is known."""
    wall = utc(realtime_ns)
    return f"{seconds(trace_time)}" + (f"  {wall}" if wall else "")
