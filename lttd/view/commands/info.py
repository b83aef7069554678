"""``lttv info``: print source, times, size and losses of a trace."""

import json
from typing import Any

from lttd.abi.framing import UNKNOWN
from lttd.clock import COUNTING_CLOCKS
from lttd.controls import control_lines
from lttd.kept import is_kept
from lttd.manifest import Manifest
from lttd.stats import counted, summary_json, summary_table
from lttd.terminal import printable
from lttd.view.complete import complete_since
from lttd.view.ftrace.traceoffs import Traceoff, traceoffs_of
from lttd.view.times import moment_text, seconds, utc
from lttd.view.trace import Trace
from lttd.view.triggers import bounds_ns, trigger_line, triggers_of


def info_json(trace: Trace) -> dict[str, Any]:
    """Return the daemon's summary and the trace's properties as a JSON object."""
    span = trace.span
    since = complete_since(trace)
    last = trace.segments[-1].manifest
    return summary_json(trace.summaries()) | {
        "path": str(trace.path),
        "state": trace.state,
        "begin": span.begin if span else None,
        "end": span.end if span else None,
        "begin_utc": utc(span.begin_realtime_ns) if span else None,
        "end_utc": utc(span.end_realtime_ns) if span else None,
        "kept_segments": kept_numbers(trace),
        "duration_ns": duration_ns(trace),
        "complete_since": since.time if since else None,
        "complete_since_utc": utc(since.realtime_ns) if since else None,
        "clock": last.clock,
        "source": last.source,
        "layout": last.layout,
        "host": last.machine.get("host", ""),
        "kernel": last.machine.get("kernel", ""),
        "segments": [segment.paths.directory.name for segment in trace.segments],
        "traceoffs": [_traceoff_json(one) for one in traceoffs_of(trace)],
        "triggers": [one.to_json() for one in triggers_of(trace)[0]],
    }


def info_text(trace: Trace) -> str:
    """Return the same for people."""
    span = trace.span
    last = trace.segments[-1].manifest
    spec = str(last.source.get("spec", last.source.get("kind", "")))
    lines = [
        ("trace", f"{trace.path} ({trace.state}, {counted(len(trace.segments), 'segment')})"),
        ("source", f"{spec}, clock {last.clock}, {last.layout}"),
        made_on(last),
    ]
    if last.own_threads:
        words = "of lttd's own are recorded, too; --hide-self leaves them out"
        lines.append(("threads", f"{len(last.own_threads)} {words}"))
    if last.source.get("mode"):
        lines.append(("mode", f"{last.source['mode']}: the windows of triggers only"))
    lines += control_lines(last.source.get("settings"))
    lines += [("reloaded", each) for each in reloads(trace)]
    if span is None:
        lines.append(("begin", "nothing was recorded"))
    else:
        lines += [
            ("begin", moment_text(span.begin, span.begin_realtime_ns)),
            ("end", moment_text(span.end, span.end_realtime_ns)),
        ]
    length_ns = duration_ns(trace)
    if length_ns is not None:
        lines.append(("duration", f"{seconds(length_ns)} s"))
    if since := complete_since(trace):
        words = "on all CPUs; earlier segments are not there"
        lines.append(("complete", f"since {moment_text(since.time, since.realtime_ns)} {words}"))
    lines += [("traceoff", _traceoff_text(one)) for one in traceoffs_of(trace)]
    if kept := kept_numbers(trace):
        lines.append(("kept", f"{counted(len(kept), 'segment')}: {', '.join(map(str, kept))}"))
    lines += [("relay", each) for each in relay_channels(trace)]
    head = "\n".join(f"{name:<11} {printable(value)}" for name, value in lines)
    return f"{head}\n\n{summary_table(trace.summaries())}{_kept_windows(trace)}"


def _traceoff_json(one: Traceoff) -> dict[str, Any]:
    return {
        "by": one.by,
        "last_event": one.last,
        "last_event_utc": utc(one.last_realtime_ns),
        "off_by": one.off_by,
        "off_by_utc": utc(one.off_by_realtime_ns),
    }


def _traceoff_text(one: Traceoff) -> str:
    """Return a line on a stop: the last event before it, and by when tracing was off."""
    after = "no event before it is stored"
    if one.last is not None:
        after = f"after the event at {moment_text(one.last, one.last_realtime_ns)}"
    return f"by {one.by}, {after}; seen at {moment_text(one.off_by, one.off_by_realtime_ns)}"


def kept_numbers(trace: Trace) -> list[int]:
    """Return the numbers of the segments that retention must not delete."""
    return [one.paths.number for one in trace.segments if is_kept(one.paths)]


def _kept_windows(trace: Trace) -> str:
    """Return a table of the windows that triggers keep; empty without one."""
    triggers, damaged = triggers_of(trace)
    lines = [trigger_line(one, utc(bounds_ns(one)[0]) or "?") for one in triggers]
    lines += [printable(line) for line in damaged]
    return "\n".join(["\n\ntrigger     window kept", *lines]) if lines else ""


def reloads(trace: Trace) -> list[str]:
    """Return a line for each change of what is recorded by a reload: its time, the new settings."""
    lines = []
    for segment in trace.segments:
        found = segment.manifest.source.get("reloads", ())
        for each in found if isinstance(found, list) else ():
            if isinstance(each, dict) and isinstance(each.get("at_ns"), int):
                events = each.get("events")
                names = map(str, events) if isinstance(events, list) else ()
                words = [",".join(names)] if isinstance(events, list) else []
                words += [" ".join(one) for one in control_lines(each)]
                lines.append(f"{utc(each['at_ns'])}  {'; '.join(words)}")
    return lines


def relay_channels(trace: Trace) -> list[str]:
    """Return a line on how to read relay channels, whose records no other line explains."""
    streams = [(one, stream) for one in trace.segments for stream in one.streams]
    relay = [one.manifest.source for one, stream in streams if stream.info.abi == UNKNOWN]
    if not relay:
        return []
    if framing := relay[-1].get("framing"):
        return [f"{framing}: lttv text prints a line per record; streams/NAME holds the records"]
    return [
        "bytes of an unknown format, which lttv text shows by entry; streams/NAME holds them all;"
        " a recording with framing= gets a line per record (docs/RELAY.md)"
    ]


def made_on(manifest: Manifest) -> tuple[str, str]:
    """Return "recorded on" or "replayed on", and the machine; a replay's data may be of another."""
    done = "replayed on" if manifest.source.get("kind") == "replay" else "recorded on"
    machine = manifest.machine
    kernel = machine.get("kernel", "?")
    return done, machine.get("host", "?") + (f", Linux {kernel}" if kernel else "")


def duration_ns(trace: Trace) -> int | None:
    """Return the duration of the trace; by the wall clock if its segments have several clocks."""
    span = trace.span
    if span is None:
        return None
    counts_ns = trace.segments[-1].manifest.clock not in COUNTING_CLOCKS
    if trace.one_clock and counts_ns:
        return span.end - span.begin
    if span.begin_realtime_ns is None or span.end_realtime_ns is None:
        return None
    return span.end_realtime_ns - span.begin_realtime_ns


def dump(value: dict[str, Any]) -> str:
    """Return a JSON object as text."""
    return json.dumps(value, indent=1)
