"""Draw rates as SVG: a lane per CPU, losses at their times, and the most frequent events.

Rule: a picture is self-contained: it has no script and fetches no font or other file.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lttd.view.rates import CpuRates, Rates
from lttd.view.svg import FONT, area, clean, element, label, moment, round_up, short, tick_step

WIDTH: Final = 1120
LEFT: Final = 124
RIGHT: Final = 150
PLOT_WIDTH: Final = WIDTH - LEFT - RIGHT
HEAD_HEIGHT: Final = 118
LANES_HEIGHT: Final = 420
"""The height of all lanes together, as long as each gets MIN_LANE."""
MIN_LANE: Final = 18
MAX_LANE: Final = 190
LANE_GAP: Final = 6
BUSIEST: Final = 12
BAR_HEIGHT: Final = 22
LOG_FROM: Final = 40.0
"""The least ratio of the highest to the usual rate for a logarithmic scale."""
INK: Final = "#1b2430"
FAINT: Final = "#667085"
GRID: Final = "#e4e7ec"
GROUND: Final = "#98a2b3"
UNRECORDED: Final = "#eceff3"
FILL: Final = "#3b76c4"
LOST: Final = "#d92d20"
BAR: Final = "#7a9fd4"


@dataclass(frozen=True)
class Head:
    """The text above a picture."""

    title: str
    when: str
    told: str
    lost: str
    """The losses in words; empty if there were none."""


class _Scale:
    """Maps events per slice to a share of a lane's height."""

    def __init__(self, rates: Rates) -> None:
        seen = [one.events[one.events > 0] for one in rates.cpus.values() if one.events.any()]
        most = max((int(events.max()) for events in seen), default=1)
        self._per_s = 1e9 / rates.slice_ns
        self.most = round_up(most * self._per_s)
        # The usual rate: the peak of the quietest lane, and the median over time.
        usual = min((float(events.max()) for events in seen), default=1.0)
        if seen:
            usual = min(usual, float(np.median(np.concatenate(seen))))
        self.log = most > LOG_FROM * usual
        # One event in a slice is drawn a tenth of a decade above the base line.
        self._least = self._per_s / 10**0.1
        self._decades = math.log10(self.most / self._least)

    def share(self, events: int) -> float:
        """Return the share of a lane's height for a number of events."""
        rate = events * self._per_s
        if not self.log:
            return rate / self.most
        return math.log10(rate / self._least) / self._decades if rate > 0 else 0.0

    def ticks(self, room: int) -> list[tuple[float, str]]:
        """Return up to *room* heights with their labels, the top one last."""
        if not self.log:
            halves = [self.most / 2] if room > 1 else []
            return [(rate / self.most, short(rate)) for rate in (*halves, self.most)]
        first, last = math.ceil(math.log10(self._least)), math.floor(math.log10(self.most))
        step = -(-(last - first + 1) // max(room, 1))
        powers = range(last, first - 1, -step)
        return [
            (math.log10(10.0**n / self._least) / self._decades, short(10.0**n)) for n in powers
        ][::-1]


def svg(head: Head, rates: Rates) -> str:
    """Return the picture as an SVG document."""
    cpus = sorted(rates.cpus)
    lane = min(max(LANES_HEIGHT / max(len(cpus), 1) - LANE_GAP, MIN_LANE), MAX_LANE)
    below = HEAD_HEIGHT + len(cpus) * (lane + LANE_GAP)
    parts = [*_head(head), *_times(rates, below)]
    scale = _Scale(rates)
    for number, cpu in enumerate(cpus):
        top = HEAD_HEIGHT + number * (lane + LANE_GAP)
        parts += _lane(rates, cpu, scale, top, lane)
    if not rates.events:
        middle = LEFT + PLOT_WIDTH / 2
        y = (HEAD_HEIGHT + below) / 2
        parts.append(label(middle, y, "no events here", 15, text_anchor="middle", fill=FAINT))
    parts += _legend(rates, scale)
    busiest, bottom = _busiest(rates, below + 62)
    return _document([*parts, *busiest], bottom, head.title)


def _document(parts: Sequence[str], height: float, title: str) -> str:
    content = "\n".join(
        [
            element("title", clean(title)),
            element("rect", width=WIDTH, height=height, fill="#ffffff"),
            *parts,
        ]
    )
    return element(
        "svg",
        f"\n{content}\n",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height:.0f}",
        width=WIDTH,
        height=round(height),
        font_family=FONT,
        fill=INK,
    )


def _head(head: Head) -> Iterator[str]:
    yield label(24, 34, head.title, 19, font_weight=600)
    yield label(24, 56, head.when, 12.5, fill=FAINT)
    yield label(24, 76, head.told, 12.5)
    fill, weight = (LOST, 600) if head.lost else (FAINT, 400)
    told = f"lost: {head.lost}" if head.lost else "nothing was lost"
    yield label(
        WIDTH - 24, 76, told, 12.5, text_anchor="end", fill=fill, font_weight=weight,
    )  # fmt: skip


def _legend(rates: Rates, scale: _Scale) -> Iterator[str]:
    y = HEAD_HEIGHT - 12
    told = (
        f"events/s, {'logarithmic' if scale.log else 'linear'}, a lane is {short(scale.most)} high"
    )
    yield label(LEFT, y, told, 11, fill=FAINT)
    x = LEFT + PLOT_WIDTH
    if any(one.losses.any() for one in rates.cpus.values()):
        yield label(x, y, "lost here", 11, text_anchor="end", fill=FAINT)
        yield element("path", d=_flag(x - 62, y - 9), fill=LOST)
        x -= 90
    if not rates.recorded.all():
        yield label(x, y, "not recorded", 11, text_anchor="end", fill=FAINT)
        yield element("rect", x=x - 92, y=y - 10, width=14, height=11, fill=UNRECORDED)


def _x(rates: Rates, at: float) -> float:
    return LEFT + PLOT_WIDTH * at / rates.slices


def _times(rates: Rates, below: float) -> Iterator[str]:
    span_ns = rates.slice_ns * rates.slices
    step_ns = tick_step(span_ns, 10)
    at_ns = -(-rates.begin_ns // step_ns) * step_ns
    while at_ns <= rates.end_ns:
        x = _x(rates, (at_ns - rates.begin_ns) / rates.slice_ns)
        yield element("line", x1=x, x2=x, y1=HEAD_HEIGHT, y2=below, stroke=GRID)
        yield label(x, below + 14, moment(at_ns, step_ns), 11, text_anchor="middle", fill=FAINT)
        at_ns += step_ns
    told = "since the trace's begin, as for --begin and --end"
    yield label(LEFT + PLOT_WIDTH, below + 30, told, 11, text_anchor="end", fill=FAINT)


def _lane(rates: Rates, cpu: int, scale: _Scale, top: float, height: float) -> Iterator[str]:
    one, bottom = rates.cpus[cpu], top + height
    if not rates.recorded.all():
        yield from _not_recorded(rates, top, height)
    if height >= 40:
        for share, told in scale.ticks(max(int(height // 26), 1)):
            y = bottom - share * height
            yield element("line", x1=LEFT, x2=LEFT + PLOT_WIDTH, y1=y, y2=y, stroke=GRID)
            yield label(LEFT - 7, y + 4, told, 10, text_anchor="end", fill=FAINT)
    yield element("line", x1=LEFT, x2=LEFT + PLOT_WIDTH, y1=bottom, y2=bottom, stroke=GROUND)
    events = one.events.tolist()
    total, peak = sum(events), max(events, default=0) * 1e9 / rates.slice_ns
    if total:
        xs = [_x(rates, at) for at in range(rates.slices + 1)]
        tops = [bottom - scale.share(count) * height for count in events]
        told = element("title", clean(f"CPU {cpu}: {total:,} events, at most {short(peak)}/s"))
        yield element("path", told, d=area(xs, tops, bottom), fill=FILL, fill_opacity=0.85)
    yield from _losses(rates, one, top, height)
    yield from _names(cpu, one, total, peak, top, height)


def _names(
    cpu: int, one: CpuRates, total: int, peak: float, top: float, height: float
) -> Iterator[str]:
    middle = top + height / 2 + 4
    yield label(24, middle, f"CPU {cpu}", 12, font_weight=600)
    lost, places = int(one.lost.sum()), int(one.losses.sum())
    told = f"{short(lost)} lost" if lost else f"{places} loss{'es' * (places != 1)}"
    x = LEFT + PLOT_WIDTH + 10
    if height < 40:
        yield label(x, middle, short(total), 11, fill=FAINT)
        if places:
            yield label(x + 62, middle, told, 11, fill=LOST)
        return
    yield label(x, middle - 10, f"{short(total)} events", 11)
    yield label(x, middle + 4, f"at most {short(peak)}/s", 11, fill=FAINT)
    if places:
        yield label(x, middle + 18, told, 11, fill=LOST)


def _not_recorded(rates: Rates, top: float, height: float) -> Iterator[str]:
    begin = None
    for at, recorded in enumerate([*rates.recorded.tolist(), True]):
        if not recorded and begin is None:
            begin = at
        if recorded and begin is not None:
            x, width = _x(rates, begin), _x(rates, at) - _x(rates, begin)
            told = element("title", "nothing was being recorded")
            yield element("rect", told, x=x, y=top, width=width, height=height, fill=UNRECORDED)
            begin = None


def _losses(rates: Rates, one: CpuRates, top: float, height: float) -> Iterator[str]:
    for at in one.losses.nonzero()[0].tolist():
        x = _x(rates, at + 0.5)
        count, places = int(one.lost[at]), int(one.losses[at])
        what = f"{count:,} events lost" if count else "lost"
        when = moment(rates.begin_ns + at * rates.slice_ns, rates.slice_ns)
        told = element("title", clean(f"{when}: {what}, in {places} place{'s' * (places != 1)}"))
        line = f"M{x - 0.6:.1f} {top:.1f}h1.2v{height:.1f}h-1.2z"
        yield element("path", told, d=line + _flag(x, top), fill=LOST)


def _flag(x: float, top: float) -> str:
    return f"M{x - 4:.1f} {top:.1f}h8l-4 7z"


def _busiest(rates: Rates, top: float) -> tuple[list[str], float]:
    """Return the bars of the most frequent events, and the bottom of the picture."""
    if not rates.events:
        return [], top - 10
    parts = [label(24, top, "Busiest events", 14, font_weight=600)]
    found = rates.types.most_common(BUSIEST)
    y, left = top + 12, 300
    room = WIDTH - left - 190
    for name, count in found:
        width = max(room * count / found[0][1], 1.0)
        told = f"{count:,}"
        middle = y + BAR_HEIGHT / 2 + 4
        shown = name if len(name) <= 36 else f"{name[:35]}…"
        parts += [
            label(left - 10, middle, shown, 12, text_anchor="end"),
            element("rect", x=left, y=y + 3, width=width, height=BAR_HEIGHT - 6, fill=BAR, rx=2),
            label(left + width + 8, middle, told, 12),
            label(
                left + width + 16 + 7.2 * len(told), middle, f"{count / rates.events:.1%}", 11,
                fill=FAINT,
            ),
        ]  # fmt: skip
        y += BAR_HEIGHT
    more = len(rates.types) - len(found)
    if more:
        rest = rates.events - sum(count for _, count in found)
        share = f"{rest / rates.events:.1%}"
        told = f"and {more:,} more type{'s' * (more != 1)} with {rest:,} events, {share}"
        parts.append(label(left, y + 16, told, 11, fill=FAINT))
        y += 22
    return parts, y + 20
