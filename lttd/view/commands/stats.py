"""``lttv stats``: durations and latencies by task, system call, interrupt handler, request or pair.

Without WHAT: how many events of each type there are, and one line for each duration that the
trace's events tell.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from lttd.clock import COUNTING_CLOCKS
from lttd.errors import UsageError
from lttd.files import Disk
from lttd.terminal import is_terminal, printable, put_line
from lttd.view.commands.plot import png_of
from lttd.view.filters import Filter, Where, matches
from lttd.view.intervals.answer import Answer, Selection
from lttd.view.intervals.distribution import QUANTILE_ERROR
from lttd.view.intervals.histogram import histogram_svg, histogram_text
from lttd.view.intervals.kind import Reading
from lttd.view.intervals.pairs import kind_of, parse_pair
from lttd.view.intervals.question import WHATS, What, of_kind
from lttd.view.intervals.texts import (
    OF_ONE,
    footer,
    groups_csv,
    groups_json,
    groups_text,
    one_cells,
    rough,
    table,
    whole_json,
)
from lttd.view.library import EventWindow
from lttd.view.notes import Notes
from lttd.view.output import new_output
from lttd.view.rates import Rates, rates_of
from lttd.view.svg import short
from lttd.view.times import Window, seconds, utc
from lttd.view.trace import Trace
from lttd.view.window import PIECE_BYTES

MOST_ROWS: Final = 20
_WIDTH: Final = 120
"""The width of tables where stdout is not a terminal."""
_LEAST_WIDTH: Final = 60


class Asked(NamedTuple):
    """The options of the command line."""

    what: str | None
    pair: str | None
    by: tuple[str, ...]
    cpus: frozenset[int]
    task: str
    where: str | None
    hide_self: bool
    measure: str | None
    worst: int
    histogram: bool
    picture: Path | None
    form: str
    """``table``, ``json`` or ``csv``."""
    most: int

    @property
    def narrows(self) -> bool:
        """Tell whether an option needs WHAT."""
        return bool(
            self.by or self.task or self.where or self.measure or self.worst or self.histogram
            or self.picture or self.form == "csv"
        )  # fmt: skip


def stats(trace: Trace, window: Window, asked: Asked) -> list[str]:
    """Print the answer; return lines for the user about what is not in it.

    Raises:
        UsageError: the options do not fit each other, or the trace has no such events.
        NotATraceError: nothing was recorded within the window.
        StorageError: the picture cannot be written.
    """
    if asked.what and asked.pair:
        raise UsageError(f"{asked.what} and --pair: leave one out")
    if asked.what is None and asked.pair is None:
        if asked.narrows:
            raise UsageError(f"name what these options are for: {', '.join(WHATS)}, or --pair")
        return _summary(trace, window, asked)
    if asked.picture is not None and asked.picture.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"{asked.picture}: name a picture .svg or .png")
    answer, notes = _answer(trace, window, asked)
    if asked.picture is not None:
        _draw(trace, answer, asked.picture)
    elif asked.form == "json":
        put_line(json.dumps(_json(trace, answer), indent=1))
    elif asked.form == "csv":
        for line in groups_csv(answer):
            put_line(line)
    else:
        put_line(_text(trace, answer, asked))
    return notes


def _what_of(asked: Asked) -> What:
    return (
        of_kind(kind_of(parse_pair(asked.pair)))
        if asked.pair is not None
        else WHATS[str(asked.what)]
    )


def _answer(trace: Trace, window: Window, asked: Asked) -> tuple[Answer, list[str]]:
    what = _what_of(asked)
    hidden = _own_pids(trace) if asked.hide_self else frozenset()
    chosen = Selection(
        asked.by or what.by, asked.cpus, asked.task, Where(asked.where) if asked.where else None,
        hidden, asked.measure, asked.worst,
    )  # fmt: skip
    answer = Answer(what, chosen)
    reading = Reading([what.kind], EventWindow([trace], window, Filter(), PIECE_BYTES))
    for _, some in reading:
        answer.add(some)
    answer.counts.add(reading.counts[what.kind.name])
    if not answer.counts.events:
        raise UsageError(_no_events(trace, window, what, reading.notes))
    return answer, [*reading.notes.told(), *_on_clock(trace)]


def _own_pids(trace: Trace) -> frozenset[int]:
    return frozenset(int(pid) for segment in trace.segments for pid in segment.manifest.own_threads)


def _no_events(trace: Trace, window: Window, what: What, notes: Notes) -> str:
    where = "has no" if window.everything else "has within these times no"
    events = " or ".join(dict.fromkeys(what.kind.events))
    remedy = f": record them with lttd {what.record}" if what.record else ""
    why = f" ({notes.told()[0]})" if notes.told() else ""
    return f"{trace.path}: {where} {events}{remedy}{why}"


def _on_clock(trace: Trace) -> Iterator[str]:
    for clock in sorted({segment.manifest.clock for segment in trace.segments} & COUNTING_CLOCKS):
        yield f"{trace.path}: its clock {clock} does not count ns: durations are in its units"


def _width() -> int:
    if is_terminal(sys.stdout):
        return max(shutil.get_terminal_size().columns, _LEAST_WIDTH)
    return _WIDTH


def _takes_unicode() -> bool:
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return encoding.lower().replace("-", "").startswith("utf")


def _text(trace: Trace, answer: Answer, asked: Asked) -> str:
    width = _width()
    parts = [groups_text(answer, asked.most, width)]
    if asked.histogram:
        whole = answer.whole()
        shown = answer.shown
        head = f"{shown.name}: {shown.help}; {whole.count:,} durations"
        parts.append(f"{head}\n{histogram_text(whole, width, unicode=_takes_unicode())}")
    if asked.worst:
        parts.append(_worst_text(trace, answer, width))
    parts.append("\n".join(footer(answer)))
    return "\n\n".join(parts)


def _worst(trace: Trace, answer: Answer) -> list[dict[str, Any]]:
    """Return the longest intervals as values, with times as --begin takes them."""
    table_ = answer.worst
    found = []
    for at in range(len(table_.get("end_ns", ()))):
        row = {name: column[at].item() for name, column in table_.items()}
        row = {
            name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            for name, value in row.items()
        }
        times = {name: _moment(trace, row[f"{name}_ns"]) for name in ("begin", "end")}
        found.append(times | row)
    return found


def _moment(trace: Trace, time: int) -> str:
    """Return a time in the form of --begin."""
    if trace.one_clock:
        return seconds(time)
    for segment in trace.segments:
        span, wall = segment.span, segment.conversion
        if span is not None and wall is not None and span.begin <= time <= span.end:
            return utc(wall.to_realtime_ns(time)) or seconds(time)
    return seconds(time)


def _worst_text(trace: Trace, answer: Answer, width: int) -> str:
    worst = _worst(trace, answer)
    if not worst:
        return f"no {answer.shown.name}"
    hidden = {"begin", "end", "begin_ns", "end_ns", "duration_ns", "measured_ns", "complete"}
    names = [name for name in worst[0] if name not in hidden]
    rows = [
        [row["begin"], row["end"], rough(row["measured_ns"]), *(str(row[name]) for name in names)]
        for row in worst
    ]
    heads = ["begin", "end", answer.shown.name, *names]
    first = worst[0]
    words = ["lttv", "text", str(trace.path), "--begin", first["begin"], "--end", first["end"]]
    command = shlex.join(words)
    return f"{table(heads, rows, 2, width)}\n\nthe first of them: {printable(command)}"


def _json(trace: Trace, answer: Answer) -> dict[str, Any]:
    counts = answer.counts
    return {
        "what": answer.what.name,
        "by": list(answer.selection.by),
        "groups": groups_json(answer),
        "all": whole_json(answer),
        "worst": _worst(trace, answer),
        "unknown": counts.unknown,
        "cut": counts.cut,
        "quantile_error": QUANTILE_ERROR,
    }


def _draw(trace: Trace, answer: Answer, out: Path) -> None:
    shown, whole = answer.shown, answer.whole()
    title = f"{trace.path.resolve().name}: {answer.what.name} {shown.name}"
    told = [shown.help, f"{whole.count:,} durations, {rough(whole.total_ns)} in all"]
    if answer.selection.where:
        told.append(f"where {answer.selection.where.text}")
    if answer.counts.unknown:
        told.append(f"{answer.counts.unknown:,} unknown")
    made = f"{histogram_svg(title, ' · '.join(told), whole)}\n"
    disk = Disk()
    with new_output(out, disk, trace) as path, disk.create(path) as file:
        file.write(png_of(made) if out.suffix.lower() == ".png" else made.encode())


def _summary(trace: Trace, window: Window, asked: Asked) -> list[str]:
    """Print the numbers of events, and a line for each duration that they tell."""
    notes = Notes()
    rates = rates_of(trace, window, Filter(asked.cpus), notes)
    whats = _whats_in(rates.types)
    answers = [Answer(what, Selection(what.overall, asked.cpus)) for what in whats]
    kinds = [what.kind for what in whats]
    reading = Reading(kinds, EventWindow([trace], window, Filter(), PIECE_BYTES))
    for kind, some in reading if answers else ():
        next(one for one in answers if one.what.kind is kind).add(some)
    for answer in answers:
        answer.counts.add(reading.counts[answer.what.kind.name])
    if asked.form == "json":
        put_line(json.dumps(_summary_json(rates, answers), indent=1))
    else:
        put_line(_summary_text(trace, rates, answers, asked.most))
    return [*notes.told(), *_on_clock(trace)]


def _per_s(rates: Rates, count: int) -> float:
    length_ns = rates.slice_ns * max(int(rates.recorded.sum()), 1)
    return count * 1e9 / length_ns


def _summary_json(rates: Rates, answers: Sequence[Answer]) -> dict[str, Any]:
    events = [
        {"event": name, "count": int(count), "per_s": round(_per_s(rates, count), 3)}
        for name, count in rates.types.most_common()
    ]
    return {"events": events, "intervals": {one.what.name: whole_json(one) for one in answers}}


def _summary_text(trace: Trace, rates: Rates, answers: Sequence[Answer], most: int) -> str:
    types = rates.types.most_common()
    rows = [
        (name, f"{count:,}", f"{count / rates.events:.1%}", short(_per_s(rates, count)))
        for name, count in types[: most or None]
    ]
    parts = [table(("event", "count", "share", "per s"), rows, 1, _width())]
    if len(types) > len(rows):
        parts[0] += f"\nand {len(types) - len(rows):,} more; -n 0 prints all"
    if answers:
        names = ", ".join(answer.what.name for answer in answers)
        parts.append(_durations_text(answers))
        command = printable(f"lttv stats {shlex.quote(str(trace.path))} WHAT")
        parts.append(f"by task, by name, ...: {command}; WHAT is one of {names}")
    return "\n\n".join(parts)


def _whats_in(types: Iterable[str]) -> list[What]:
    """Return what the events tell of."""
    names = [name.rpartition(":")[::2] for name in types]
    return [
        what
        for what in WHATS.values()
        if any(matches(*name, glob) for name in names for glob in what.kind.reads)
    ]


def _durations_text(answers: Sequence[Answer]) -> str:
    rows = [
        (" ".join((answer.what.name, *group.label, measure.name)), *one_cells(found), measure.help)
        for answer in answers
        for group in answer.groups()
        for measure in answer.what.measures
        if (found := group.measures[measure.name]).count
    ]
    return table(("interval", *OF_ONE, ""), rows, 1, _width())
