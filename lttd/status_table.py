"""Print the state of a run for people: a few lines, then a row for each stream.

Rule: pure; every text of the recorder is escaped (lttd.terminal), and a value that an older or a
newer recorder lacks is left out.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from lttd.stats import counted, human_bytes, losses_text
from lttd.terminal import printable


def status_table(state: Mapping[str, Any]) -> str:
    """Return the lines for *state*, which RunState.to_json() made."""
    lines = [_head(state), *(f"not healthy: {_condition(each)}" for each in state["conditions"])]
    backlog = state["backlog"]
    waiting = f"{human_bytes(backlog['bytes'])} of {human_bytes(backlog['limit_bytes'])}"
    lines.append(f"backlog {waiting}, {counted(state['segments'], 'segment')}")
    if flight := state.get("flight"):
        lines.append(_flight(flight))
    if store := state.get("store"):
        lines += _store(store)
    lines += [_window(each) for each in state.get("windows", ())]
    lines += [
        f"{printable(name)} failed writes: {n:,}" for name, n in state["write_errors"].items()
    ]
    for source in state["sources"]:
        lines += ["", _source(source), *_controls(source), *_rows(source["streams"])]
    return "\n".join(lines)


def _head(state: Mapping[str, Any]) -> str:
    where = printable(state["trace_dir"])
    doing = printable(state["doing"])
    program = f"lttd {printable(state['version'])} (pid {state['pid']})"
    return f"{program}: {doing} to {where} for {duration_text(state['uptime_seconds'])}"


def _condition(condition: Mapping[str, Any]) -> str:
    where = f"{condition['where']}: " if condition["where"] else ""
    return printable(f"{where}{condition['words']}")


def _flight(flight: Mapping[str, Any]) -> str:
    doing = "nothing is written until a trigger" if flight["waiting"] else "a window is written"
    if flight["overwritten_events"] is None:
        return f"flight: {doing}"
    gone = counted(flight["overwritten_events"], "event")
    return f"flight: {doing}; the rings overwrote {gone} that no trigger wanted"


def _store(store: Mapping[str, Any]) -> list[str]:
    """Return the lines on the store: its size and reach, kept and deleted segments."""
    limit = store.get("limit_bytes")
    words = f"store {human_bytes(store['allocated_bytes'])}"
    words += f" of {human_bytes(limit)}" if limit else ""
    if (reach := store.get("reach_seconds")) is not None:
        words += f", complete for the last {duration_text(reach)}"
    if store["kept_segments"]:
        kept = counted(store["kept_segments"], "segment")
        words += f", {kept} kept ({human_bytes(store['kept_bytes'])})"
    deleted = {key: count for key, count in store["deletions"].items() if count}
    if deleted:
        told = ", ".join(f"{printable(key)} {count:,}" for key, count in deleted.items())
        return [words, f"deleted segments by reason: {told}"]
    return [words]


def _window(trigger: Mapping[str, Any]) -> str:
    at = dt.datetime.fromtimestamp(trigger["at_ns"] // 1_000_000_000, dt.UTC)
    reason = printable(str(trigger.get("reason", ""))) or "no reason given"
    done = "" if trigger.get("complete", True) else " (not complete yet)"
    return f"trigger {trigger['number']} at {at:%Y-%m-%d %H:%M:%S} UTC: {reason}{done}"


def _source(source: Mapping[str, Any]) -> str:
    settings = source["settings"]
    events = ",".join(map(str, settings.get("events", ())))
    told = [source["source"], f"clock {source['clock']}", events, f"segment {source['segment']}"]
    return printable(", ".join(each for each in told if each))


def _controls(source: Mapping[str, Any]) -> list[str]:
    return [printable(f"{option} {text}") for option, text in source.get("controls", ())]


def _rows(streams: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [("stream", "sub-buffers", "payload", "per second", "ring", "lag", "lost")]
    rows += [
        (
            printable(each["name"]),
            f"{each['subbuffers']:,}",
            human_bytes(each["payload_bytes"]),
            f"{human_bytes(round(each['bytes_per_second']))}/s",
            _percent(each["ring_fill_ratio"]),
            _seconds(each["lag_seconds"]),
            printable(losses_text(each["lost"], each["gaps_unknown"])),
        )
        for each in streams
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return [
        "  ".join(
            [f"{row[0]:<{widths[0]}}", *(f"{row[n]:>{widths[n]}}" for n in range(1, 6)), row[6]]
        )
        for row in rows
    ]


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.0%}"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f} s"


def duration_text(seconds: float) -> str:
    """Return a duration for people: ``12 s``, ``3 min 5 s``, ``2 h 4 min``, ``3 d 2 h``."""
    whole = int(seconds)
    for unit_s, unit, smaller_s, smaller in (
        (86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"),
    ):  # fmt: skip
        if whole >= unit_s:
            return f"{whole // unit_s} {unit} {whole % unit_s // smaller_s} {smaller}"
    return f"{whole} s"
