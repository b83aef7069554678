"""Draw a distribution: bars by powers of two in a terminal, finer ones as SVG.

Rule: the SVG is self-contained; it has the colours of a light page, and those of a dark one where
its viewer says that the user prefers them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from lttd.view.intervals.distribution import Durations, bounds_of
from lttd.view.intervals.texts import QUANTILES, rough
from lttd.view.svg import FONT, clean, element, label, short

_BLOCKS: Final = " ▏▎▍▌▋▊▉█"
_ASCII: Final = " #"
_LEAST_BAR: Final = 10
_PER_POWER: Final = 4
"""The number of bars of a power of two in the SVG."""
WIDTH: Final = 960
HEIGHT: Final = 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 84, 56
_STYLE: Final = """
.ground { fill: #ffffff } text { fill: #1b2430 } .faint { fill: #667085 }
.grid { stroke: #e4e7ec } .bar { fill: #3b76c4 } .mark { stroke: #b54708 } .marked { fill: #b54708 }
@media (prefers-color-scheme: dark) {
.ground { fill: #11161d } text { fill: #e6eaf0 } .faint { fill: #98a2b3 }
.grid { stroke: #2a323d } .bar { fill: #6ea3e8 } .mark { stroke: #f79009 } .marked { fill: #f79009 }
}
"""


def histogram_text(durations: Durations, width: int, *, unicode: bool) -> str:
    """Return a line for each power of two: its span, the count, and a bar."""
    if not durations.count:
        return "no durations"
    counts = dict(durations.by_power())
    powers = range(min(counts), max(counts) + 1)
    most = max(counts.values())
    heads = [f"{rough(_least(power))} .. {rough(2 ** (power + 1))}" for power in powers]
    told = [f"{counts.get(power, 0):,}" for power in powers]
    before, count = max(map(len, heads)), max(map(len, told))
    room = max(width - before - count - 4, _LEAST_BAR)
    letters = _BLOCKS if unicode else _ASCII
    lines = []
    for power, head, text in zip(powers, heads, told, strict=True):
        bar = _bar(counts.get(power, 0) / most * room, letters)
        lines.append(f"{head.rjust(before)}  {text.rjust(count)}  {bar}".rstrip())
    return "\n".join(lines)


def _least(power: int) -> int:
    return 2**power if power >= 0 else 0


def _bar(length: float, letters: str) -> str:
    """Return a bar; one that is not empty has at least its thinnest part."""
    steps = len(letters) - 1
    parts = max(round(length * steps), 1) if length else 0
    whole, rest = divmod(parts, steps)
    return letters[-1] * whole + (letters[rest] if rest else "")


def histogram_svg(title: str, subtitle: str, durations: Durations) -> str:
    """Return the distribution as an SVG document."""
    parts = [
        element("style", _STYLE),
        element("title", clean(title)),
        element("rect", class_="ground", width=WIDTH, height=HEIGHT),
        label(_LEFT, 32, title, 18, font_weight=600),
        label(_LEFT, 54, subtitle, 12, class_="faint"),
        *(_chart(durations) if durations.count else [label(_LEFT, 200, "no durations", 15)]),
    ]
    content = "\n".join(parts)
    size = {"width": WIDTH, "height": HEIGHT, "viewBox": f"0 0 {WIDTH} {HEIGHT}"}
    xmlns = "http://www.w3.org/2000/svg"
    return element("svg", f"\n{content}\n", xmlns=xmlns, **size, font_family=FONT)


def _bars(durations: Durations) -> dict[int, int]:
    """Return the counts by the number of a bar: quarters of a power of two."""
    found: dict[int, int] = {}
    for bucket, count in zip(durations.buckets.tolist(), durations.counts.tolist(), strict=True):
        low, behind = bounds_of(bucket)
        number = math.floor(_PER_POWER * math.log2(max((low + behind - 1) / 2, 1)))
        found[number] = found.get(number, 0) + count
    return found


def _chart(durations: Durations) -> Iterator[str]:
    bars = _bars(durations)
    first, behind = min(bars) - 1, max(bars) + 2
    step = (WIDTH - _LEFT - _RIGHT) / (behind - first)
    floor, room = HEIGHT - _BOTTOM, HEIGHT - _BOTTOM - _TOP
    most = max(bars.values())

    def x_of(ns: float) -> float:
        return _LEFT + (_PER_POWER * math.log2(max(ns, 1)) - first) * step

    for share in (0.25, 0.5, 0.75, 1.0):
        y = floor - share * room
        yield element("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y)
        told = short(share * most)
        yield label(_LEFT - 8, y + 4, told, 11, text_anchor="end", class_="faint")
    for number, count in sorted(bars.items()):
        height = max(count / most * room, 1.0)
        low, high = (rough(2 ** (at / _PER_POWER)) for at in (number, number + 1))
        told = element("title", clean(f"{low} to {high}: {count:,}"))
        yield element(
            "rect", told, class_="bar", x=_LEFT + (number - first) * step + 0.5, y=floor - height,
            width=max(step - 1, 0.5), height=height,
        )  # fmt: skip
    yield from _axis(x_of, first, behind, floor)
    yield from _marks(durations, x_of, floor)


def _axis(x_of: Callable[[float], float], first: int, behind: int, floor: int) -> Iterator[str]:
    """Yield the ticks: powers of ten of ns, or of two if these are few."""
    low, high = 2 ** (first / _PER_POWER), 2 ** (behind / _PER_POWER)
    steps: Sequence[int] = (1,) if high / low > 1000 else (1, 2, 5)
    values = [step * 10**power for power in range(20) for step in steps]
    for value in (one for one in values if low <= one <= high):
        yield label(x_of(value), floor + 18, rough(value), 11, text_anchor="middle", class_="faint")
        yield element("line", class_="grid", x1=x_of(value), x2=x_of(value), y1=floor, y2=floor + 5)


def _marks(durations: Durations, x_of: Callable[[float], float], floor: int) -> Iterator[str]:
    marks = {name: durations.quantile_ns(share) for name, share in QUANTILES.items()}
    for row, (name, value) in enumerate((marks | {"max": durations.most_ns}).items()):
        x = x_of(value)
        yield element(
            "line", class_="mark", x1=x, x2=x, y1=_TOP - 6, y2=floor, stroke_dasharray="3 3"
        )
        anchor = "end" if x > WIDTH - 160 else "start"
        told = f"{name} {rough(value)}"
        dx = -4 if anchor == "end" else 4
        yield label(x + dx, _TOP + 6 + 14 * row, told, 11, text_anchor=anchor, class_="marked")
