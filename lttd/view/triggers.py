"""The windows of a trace that triggers keep: listed by ``lttv info``, shown by ``--trigger N``."""

from lttd.errors import TraceDamagedError, UsageError
from lttd.kept import read_kept
from lttd.terminal import printable
from lttd.trigger import Trigger
from lttd.view.times import Moment, Window
from lttd.view.trace import Trace


def triggers_of(trace: Trace) -> tuple[list[Trigger], list[str]]:
    """Return the triggers of a trace by number, and a line for each damaged record.

    A trigger is in every segment of its window; the record of a complete window wins.
    """
    found: dict[int, Trigger] = {}
    damaged = []
    for segment in trace.segments:
        try:
            kept = read_kept(segment.paths)
        except TraceDamagedError as error:
            damaged.append(str(error))
            continue
        for one in kept.triggers:
            if one.number not in found or one.complete:
                found[one.number] = one
    return sorted(found.values(), key=lambda one: one.number), damaged


def window_of_trigger(trace: Trace, number: int) -> Window:
    """Return the window of ``--trigger``.

    Raises:
        UsageError: the trace has no such trigger.
    """
    known, _ = triggers_of(trace)
    for one in known:
        if one.number == number:
            begin_ns, end_ns = bounds_ns(one)
            return Window(Moment(begin_ns, wall=True), Moment(end_ns, wall=True))
    numbers = ", ".join(str(one.number) for one in known[-8:])
    there = f"there are {numbers}" if numbers else "no window of it is kept"
    raise UsageError(f"{trace.path}: no trigger {number}; {there}")


def trigger_line(one: Trigger, begin_utc: str) -> str:
    """Return a trigger as a line; whatever its sender chose is escaped."""
    begin_ns, end_ns = bounds_ns(one)
    lasted_s = max(end_ns - begin_ns, 0) / 1e9
    labels = "".join(f" {name}={value}" for name, value in one.labels.items())
    note = f"; {one.note}" if one.note else ""
    state = "" if one.complete else "; not complete"
    head = f"{one.number:<12}{begin_utc}  {lasted_s:.3f} s"
    return printable(f"{head}  {one.reason} ({one.by}){labels}{note}{state}")


def bounds_ns(one: Trigger) -> tuple[int, int]:
    """Return the true bounds of a window, or those asked for while it is not complete."""
    return (
        one.asked_begin_ns if one.begin_ns is None else one.begin_ns,
        one.asked_end_ns if one.end_ns is None else one.end_ns,
    )
