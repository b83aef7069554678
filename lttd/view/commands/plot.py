"""``lttv plot``: draw a picture of a window, as SVG, HTML or PNG.

Rule: the file is self-contained and holds only counts, so it is small for a trace of any length.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Final

from lttd.clock import COUNTING_CLOCKS
from lttd.errors import UsageError
from lttd.files import Disk
from lttd.subbuffer import Unit
from lttd.view.commands.info import made_on
from lttd.view.filters import Filter
from lttd.view.notes import Notes
from lttd.view.output import new_output
from lttd.view.picture import Head, svg
from lttd.view.rates import Rates, rates_of
from lttd.view.svg import FONT, clean, duration, short
from lttd.view.times import Window, seconds, utc
from lttd.view.trace import Span, Trace

PNG_ZOOM: Final = 2
# The longest text on the left, which leaves room for the losses on the right of the line.
ONLY_CHARS: Final = 48


def plot(trace: Trace, window: Window, chosen: Filter, out: Path) -> list[str]:
    """Draw *window* of *trace* to *out* in the format of its suffix; return lines for the user.

    Raises:
        NotATraceError: nothing was recorded within the window.
        UsageError: the suffix is unknown; resvg-py is missing for PNG; *out* exists already.
        StorageError: *out* could not be written.
    """
    write = _WRITERS.get(out.suffix.lower())
    if write is None:
        raise UsageError(f"{out}: name a picture .svg, .html or .png")
    if write is png:
        _resvg()  # raise before the work, not after
    notes = Notes()
    disk = Disk()
    with new_output(out, disk, trace) as made, disk.create(made) as file:
        rates = rates_of(trace, window, chosen, notes)
        file.write(write(head_of(trace, rates, chosen), rates))
    return notes.told()


def head_of(trace: Trace, rates: Rates, chosen: Filter) -> Head:
    """Return the text above a picture: its source, times, filter and losses."""
    clock = trace.segments[-1].manifest.clock
    told = [f"{rates.events:,} events"]
    if rates.types:
        told[0] += f" of {len(rates.types):,} type{'s' * (len(rates.types) != 1)}"
    told[0] += f" on {len(rates.cpus)} CPU{'s' * (len(rates.cpus) != 1)}"
    length_ns = rates.slice_ns * max(int(rates.recorded.sum()), 1)
    if rates.events:
        told.append(f"{short(rates.events * 1e9 / length_ns)} events/s on average")
    told.append(f"slices of {duration(rates.slice_ns)}")
    if trace.hides_self:
        told.append("without lttd's own threads")
    if chosen:
        only = f"only {chosen}"
        told.append(only if len(only) <= ONLY_CHARS else f"{only[: ONLY_CHARS - 1]}…")
    name = trace.path.resolve().name
    done, where = made_on(trace.segments[-1].manifest)
    title = f"{name}: {where}" if done == "recorded on" else f"{name}: {done} {where}"
    return Head(title, _when(rates.span, clock), " · ".join(told), _lost(rates))


def _when(span: Span, clock: str) -> str:
    parts = []
    if span.begin_realtime_ns is not None:
        parts.append(_utc_span(span.begin_realtime_ns, span.end_realtime_ns))
    if span.end < span.begin or clock in COUNTING_CLOCKS:
        parts.append(f"trace clock {clock}")
    else:
        parts.append(f"{seconds(span.begin)} to {seconds(span.end)} s on the trace clock ({clock})")
        parts.append(f"{(span.end - span.begin) / 1e9:.6g} s long")
    return " · ".join(parts)


def _utc_span(begin_ns: int, end_ns: int | None) -> str:
    begin, end = ((utc(each) or "?")[:23].replace("T", " ") for each in (begin_ns, end_ns))
    return f"{begin} to {end[11:] if end[:10] == begin[:10] else end} UTC"


def _lost(rates: Rates) -> str:
    places = sum(int(one.losses.sum()) for one in rates.cpus.values())
    if not places:
        return ""
    units = {Unit.EVENTS: "events", Unit.SUBBUFFERS: "sub-buffers", Unit.BYTES: "bytes"}
    parts = [f"{count:,} {units[unit]}" for unit, count in rates.lost.items() if count]
    if rates.unknown_losses:
        parts.append(f"{rates.unknown_losses:,} times an unknown number")
    return f"{' and '.join(parts)}, in {places:,} place{'s' * (places != 1)}"


def as_svg(head: Head, rates: Rates) -> bytes:
    """Return the picture as SVG."""
    return f"{svg(head, rates)}\n".encode()


def png(head: Head, rates: Rates) -> bytes:
    """Return the picture as PNG, drawn with this machine's fonts."""
    return png_of(svg(head, rates))


def png_of(document: str) -> bytes:
    """Return an SVG document as PNG, drawn with this machine's fonts.

    Raises:
        UsageError: resvg-py is missing.
    """
    made: bytes = _resvg()(svg_string=document, zoom=PNG_ZOOM, font_family="DejaVu Sans")
    return made


def _resvg() -> Callable[..., bytes]:
    try:
        found: Callable[..., bytes] = import_module("resvg_py").svg_to_bytes
    except ImportError:
        raise UsageError("a PNG needs resvg-py: pip install 'lttd[png]'; or name an .svg") from None
    return found


def html(head: Head, rates: Rates) -> bytes:
    """Return an HTML page: the picture, and tables of all event types and CPUs."""
    types = [
        (name, f"{count:,}", f"{count / rates.events:.2%}")
        for name, count in rates.types.most_common()
    ]
    cpus = [
        (str(cpu), f"{int(one.events.sum()):,}", f"{int(one.lost.sum()):,}",
         f"{int(one.losses.sum()):,}")
        for cpu, one in sorted(rates.cpus.items())
    ]  # fmt: skip
    tables = _table(("event", "count", "share"), types)
    tables += _table(("CPU", "events", "events lost", "in places"), cpus)
    page = f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{clean(head.title)}</title>
<style>
body {{ margin: 0 auto; max-width: 1120px; font: 13px {FONT}; color: #1b2430; background: #fff }}
svg {{ width: 100%; height: auto }}
main {{ display: flex; flex-wrap: wrap; gap: 48px; align-items: start; padding: 8px 24px 48px }}
table {{ border-collapse: collapse }}
th {{ font-weight: 600; color: #667085 }}
th, td {{ padding: 2px 0 2px 28px; text-align: right; font-variant-numeric: tabular-nums }}
th:first-child, td:first-child {{ padding-left: 0; text-align: left }}
tr + tr td {{ border-top: 1px solid #eceff3 }}
</style>
{svg(head, rates)}
<main>
{tables}</main>
</html>
"""
    return page.encode()


def _table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{clean(cell)}</{tag}>" for cell in cells) + "</tr>\n"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table>\n{row(names, 'th')}{body}</table>\n"


_WRITERS: Final = {".svg": as_svg, ".html": html, ".png": png}
