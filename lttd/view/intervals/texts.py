"""Write an answer as a table for a terminal, as JSON, and as CSV.

Rule: a table fits the terminal: labels are cut, and then the last columns are left out.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from lttd.terminal import printable
from lttd.view.intervals.answer import Answer, Group
from lttd.view.intervals.distribution import QUANTILE_ERROR, Durations

QUANTILES: Final = {"p50": 0.5, "p99": 0.99}
_UNITS_NS: Final = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"))
_LEAST_LABEL: Final = 12
_GAP: Final = "  "


class Shown(NamedTuple):
    """A column of a table: a number of one measure."""

    heading: str
    measure: str
    number: str
    """``count``, ``total``, ``mean``, ``max``, or a quantile."""


OF_ONE: Final = ("count", "total", "mean", "p50", "p99", "max")
_SHOWN: Final = {
    "sched": (
        Shown("runs", "running", "count"), Shown("on CPU", "running", "total"),
        Shown("waits", "waiting", "count"), Shown("waited", "waiting", "total"),
        Shown("wake-up p50", "latency", "p50"), Shown("p99", "latency", "p99"),
        Shown("max", "latency", "max"), Shown("slept", "sleeping", "total"),
        Shown("blocked", "blocked", "total"),
    ),
    "block": (
        Shown("requests", "D2C", "count"), Shown("D2C p50", "D2C", "p50"),
        Shown("p99", "D2C", "p99"), Shown("max", "D2C", "max"), Shown("I2D p50", "I2D", "p50"),
        Shown("p99", "I2D", "p99"), Shown("Q2C p50", "Q2C", "p50"), Shown("p99", "Q2C", "p99"),
        Shown("max", "Q2C", "max"),
    ),
}  # fmt: skip


def rough(ns: float) -> str:
    """Return a duration with about three digits: 987ns, 12.3us, 1.50s."""
    for unit_ns, unit in _UNITS_NS:
        value = ns / unit_ns
        if value >= 0.9995:
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f}{unit}"
    return f"{ns:.0f}ns" if ns else "0"


def number_of(durations: Durations, name: str) -> float:
    """Return a number of a distribution, in ns if it is not the count."""
    if name in QUANTILES:
        return durations.quantile_ns(QUANTILES[name])
    found = {
        "count": durations.count,
        "total": durations.total_ns,
        "mean": durations.mean_ns,
        "max": durations.most_ns,
    }
    return found[name]


def _cell(durations: Durations, name: str) -> str:
    if name == "count":
        return f"{durations.count:,}"
    return rough(number_of(durations, name)) if durations.count else "-"


def one_cells(durations: Durations) -> list[str]:
    """Return all numbers of a distribution as texts."""
    return [_cell(durations, name) for name in OF_ONE]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], labels: int, width: int) -> str:
    """Return a table with *labels* columns of text, and numbers after them, *width* wide.

    A column without a heading is text, too.
    """
    told = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *told, strict=True)]
    most = len(heads)
    while most > labels + 1 and _wide(widths[:most], labels) > width:
        most -= 1
    over = sum(widths[:most]) + len(_GAP) * (most - 1) - width
    if over > 0 and labels:
        longest = max(range(labels), key=lambda at: widths[at])
        widths[longest] = max(widths[longest] - over, min(widths[longest], _LEAST_LABEL))
    lines = []
    for row in (heads, *told):
        cells = [
            _cut(cell, size).ljust(size) if at < labels or not heads[at] else cell.rjust(size)
            for at, (cell, size) in enumerate(zip(row[:most], widths, strict=False))
        ]
        lines.append(_GAP.join(cells).rstrip())
    return "\n".join(lines)


def _wide(widths: Sequence[int], labels: int) -> int:
    shortest = [min(size, _LEAST_LABEL) for size in widths[:labels]]
    return sum(shortest) + sum(widths[labels:]) + len(_GAP) * (len(widths) - 1)


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}~"


def groups_text(answer: Answer, most: int, width: int) -> str:
    """Return the table of an answer, *most* groups long."""
    what, by = answer.what, answer.selection.by
    shown = _SHOWN.get(what.name) or tuple(
        Shown(name, what.measures[0].name, name) for name in OF_ONE
    )
    groups = list(answer.groups())
    most = most or len(groups)
    counters = [name for name in what.counters if any(one.counters[name] for one in groups)]
    unknown = ["unknown"] if any(one.unknown for one in groups) else []
    rows = []
    for group in groups[:most]:
        cells = [_cell(group.measures[one.measure], one.number) for one in shown]
        cells += [f"{group.counters[name]:,}" for name in counters]
        cells += [f"{group.unknown:,}"] if unknown else []
        rows.append([*(group.label or ("all",)), *cells])
    heads = [*(by or (what.name,)), *(one.heading for one in shown), *counters, *unknown]
    lines = [table(heads, rows, len(by) or 1, width)]
    if len(groups) > most:
        lines.append(f"and {len(groups) - most:,} more; -n 0 prints all")
    return "\n".join(lines)


def footer(answer: Answer) -> list[str]:
    """Return lines on what is in no number, and on how exact the others are."""
    counts = answer.counts
    lines = []
    if counts.unknown:
        lines.append(f"{counts.unknown:,} unknown: an event of them is lost, or may be")
    if counts.cut:
        why = "they began before these times, or had not ended"
        if not answer.what.record:  # the user named the pair, of which an end may come alone
            why += ", or were an end without a begin"
        lines.append(f"{counts.cut:,} cut: {why}")
    lines.append(f"p50 and p99 are within {QUANTILE_ERROR:.1%}; other numbers are exact")
    return lines


def _durations_json(durations: Durations) -> dict[str, Any]:
    found: dict[str, Any] = {"count": durations.count}
    for name in OF_ONE[1:]:
        found[f"{name}_ns"] = round(number_of(durations, name))
    return found


def groups_json(answer: Answer) -> list[dict[str, Any]]:
    """Return the groups of an answer as JSON values."""
    by = answer.selection.by
    return [
        {
            **dict(zip(by, group.label, strict=True)),
            **{name: _durations_json(one) for name, one in group.measures.items()},
            **group.counters,
            "unknown": group.unknown,
        }
        for group in answer.groups()
    ]


def whole_json(answer: Answer) -> dict[str, Any]:
    """Return the numbers of all groups together."""
    return {one.name: _durations_json(answer.whole(one.name)) for one in answer.what.measures}


def groups_csv(answer: Answer) -> Iterator[str]:
    """Yield lines of CSV: one for each group and measure."""
    heads = ["measure", "count", *(f"{name}_ns" for name in OF_ONE[1:])]
    yield _line([*answer.selection.by, *heads, *answer.what.counters, "unknown"])
    for group in answer.groups():
        for name, durations in group.measures.items():
            yield _line([*group.label, name, *_durations_json(durations).values(), *_rest(group)])


def _rest(group: Group) -> list[int]:
    return [*group.counters.values(), group.unknown]


def _line(cells: Sequence[object]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(cells)
    return out.getvalue()
