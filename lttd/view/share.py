"""``lttv formats``: of the event types there are, how many print fmts can be expressed here."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lttd.abi.ftrace_format import Format
from lttd.errors import NotATraceError
from lttd.tracedir import segments
from lttd.view.formats import Formats
from lttd.view.render import why_inexpressible


def formats_of(path: Path) -> Iterator[Format]:
    """Yield the formats below a tracefs, or of a trace's last segment.

    Raises:
        NotATraceError: neither.
    """
    if (path / "events").is_dir():
        found = Formats(path, "<", 8)
    else:
        found = Formats(segments(path)[-1].directory / "tracefs", "<", 8)
    for number in sorted(found.files):
        format_ = found.get(number)
        if format_ is not None:
            yield format_


def share_text(path: Path) -> str:
    """Return a line per type that falls back to ``name=value``, and the share that does not.

    Raises:
        NotATraceError: no formats there.
    """
    whys = {f"{one.system}:{one.name}": why_inexpressible(one) for one in formats_of(path)}
    if not whys:
        raise NotATraceError(f"{path}: no event formats, which only ftrace has")
    lines = [f"{name}: {why}" for name, why in sorted(whys.items()) if why is not None]
    held = Counter(why is None for why in whys.values())
    share = held[True] / len(whys)
    lines.append(f"{held[True]} of {len(whys)} event types as their print fmt says ({share:.1%})")
    return "\n".join(lines)
