"""Write SVG: elements, text, and round numbers for axes.

Rule: all text of a trace is escaped, whatever bytes it has.
"""

import re
from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from lttd.terminal import printable

FONT: Final = "Inter, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"
# XML 1.0, section 2.2: characters that a document cannot contain, not even escaped.
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PREFIXES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_ROUND: Final = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8)
"""Halves of these are round, too."""
_UNITS_NS: Final = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"), (1, "ns"))


def clean(text: str) -> str:
    """Return *text* for a document: escaped as for a terminal, then as XML."""
    return escape(_NO_XML.sub("\ufffd", printable(text)))


def element(name: str, content: str = "", **attributes: object) -> str:
    """Return an element; *content* is markup; ``_`` in an attribute's name is written ``-``."""
    told = "".join(
        f" {key.rstrip('_').replace('_', '-')}={quoteattr(_NO_XML.sub('?', _number(value)))}"
        for key, value in attributes.items()
    )
    return f"<{name}{told}>{content}</{name}>" if content else f"<{name}{told}/>"


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def label(x: float, y: float, text: str, size: float = 12, **attributes: object) -> str:
    """Return a line of text whose baseline is at *y*."""
    return element("text", clean(text), x=x, y=y, font_size=size, **attributes)


def area(xs: Sequence[float], tops: Sequence[float], bottom: float) -> str:
    """Return a path of steps: from ``xs[n]`` to ``xs[n + 1]`` at the height ``tops[n]``."""
    parts = [f"M{xs[0]:.1f} {bottom:.1f}"]
    before = bottom
    for x, top in zip(xs, tops, strict=False):
        if top != before:
            parts.append(f"H{x:.1f}V{top:.1f}")
            before = top
    return "".join([*parts, f"H{xs[-1]:.1f}V{bottom:.1f}Z"])


def short(value: float) -> str:
    """Return a number with at most three digits: 987, 12.3 k, 4.56 M."""
    for unit, prefix in _PREFIXES:
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g} {prefix}"
    return f"{value:.3g}"


def round_up(value: float) -> float:
    """Return the smallest number of one or two round digits that is at least *value*."""
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next((n * power for n in _ROUND if n * power >= value * 0.9999), 10 * power)


def tick_step(span_ns: int, most: int) -> int:
    """Return a round step that gives at most *most* ticks in a span."""
    step, leading = 1, (1, 2, 5)
    while True:
        for number in leading:
            if span_ns <= step * number * most:
                return step * number
        step *= 10


def moment(time_ns: int, step_ns: int) -> str:
    """Return a time in the form of ``--begin``, with the digits that a step needs."""
    unit_ns, unit = next(
        ((ns, name) for ns, name in _UNITS_NS if step_ns * 1000 >= ns or name == "ns")
    )
    digits = 0
    while digits < 9 and (step_ns * 10**digits) % unit_ns:
        digits += 1
    return f"{'-' if time_ns < 0 else '+'}{abs(time_ns) / unit_ns:.{digits}f}{unit}"


def duration(length_ns: int) -> str:
    """Return a duration as a whole number of the largest unit possible."""
    unit_ns, unit = next((ns, unit) for ns, unit in _UNITS_NS if length_ns % ns == 0)
    return f"{length_ns // unit_ns} {unit}"
