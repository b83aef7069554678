"""``lttv formats``: list conversions of print fmts that lttv cannot print as the kernel does."""

from collections.abc import Iterator
from pathlib import Path

from lttd.abi.ftrace_format import Format
from lttd.beneath import OpenDirectory
from lttd.errors import NotATraceError
from lttd.terminal import printable
from lttd.tracedir import segments
from lttd.view.formats import Formats
from lttd.view.ftrace.render import LeftOut, tried
from lttd.view.notes import Notes, TakesNotes


def formats_of(path: Path, notes: TakesNotes) -> Iterator[Format]:
    """Yield the formats of a tracefs, or of a trace's last segment.

    *notes* get a line for each format that cannot be read.

    Raises:
        NotATraceError: *path* is neither.
    """
    try:
        tracefs = OpenDirectory.open(path).place(path)
        named = tracefs.directory.is_directory(path / "events")
    except OSError:
        named = False  # segments() raises the reason
    if named:
        yield from _all_of(Formats(tracefs, "<", 8, notes))
        return
    while True:
        last = segments(path)[-1]
        found = list(_all_of(Formats(last.tracefs, "<", 8, notes)))
        if not last.is_gone():
            yield from found
            return


def _all_of(found: Formats) -> Iterator[Format]:
    for number in sorted(found.files):
        format_ = found.get(number)
        if format_ is not None:
            yield format_


def share_text(path: Path) -> str:
    """Return a line per conversion that is left out, and the share of conversions that are not.

    Raises:
        NotATraceError: *path* has no formats.
    """
    lines: list[str] = []
    notes = Notes()
    types = whole = conversions = left_out = 0
    for one in formats_of(path, notes):
        found = tried(one)
        types += 1
        whole += found.reason is None
        conversions += found.conversions
        left_out += len(found.left_out)
        name = f"{one.system}:{one.name}"
        if found.reason is not None and not found.left_out:
            lines.append(f"{name}: {found.reason}: shown as name=value")
        lines += [f"{name}: {label_of(each)}{each.why}" for each in found.left_out]
    if not types:
        raise NotATraceError(f"{path}: no event formats, which only ftrace has")
    printed = conversions - left_out
    share, part = whole / types, printed / max(conversions, 1)
    return "\n".join(
        [
            *map(printable, [*sorted(lines), *notes.told()]),
            f"{printed} of {conversions} conversions print as in the kernel ({part:.2%})",
            f"{whole} of {types} event types print as their print fmt says ({share:.1%})",
        ]
    )


def label_of(left_out: LeftOut) -> str:
    """Return the label before a conversion, as the begin of a line."""
    words = left_out.label.split()
    return f"{words[-1]} " if words else ""
