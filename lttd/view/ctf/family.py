"""The family of CTF; see ``lttd.view.family``."""

from collections.abc import Sequence
from typing import Final

from lttd.view.ctf.context import CtfContexts
from lttd.view.ctf.decode import CtfDecoder
from lttd.view.ctf.tasks import CtfNames
from lttd.view.family import Family, Lines, Printing
from lttd.view.notes import TakesNotes
from lttd.view.trace import Segment
from lttd.view.window import WindowStream

BABELTRACE: Final = "babeltrace"


def _names(_segments: Sequence[Segment], _notes: TakesNotes) -> CtfNames:
    return CtfNames()


def _lines(printing: Printing, notes: TakesNotes) -> Lines:
    names, fields = printing.names, printing.fields
    if printing.style == BABELTRACE:
        from lttd.view.ctf.babeltrace import BabeltraceTexter  # noqa: PLC0415  (not for the rest)

        return BabeltraceTexter(printing.sources, notes)
    from lttd.view.lines import FieldTexter  # noqa: PLC0415  (not to count, nor to export)

    assert names is not None
    return FieldTexter(names, nanoseconds=printing.nanoseconds, fields=fields)


def _prepare(sources: Sequence[WindowStream]) -> None:
    for source in sources:
        source.context.prepare()


FAMILY: Final = Family(
    CtfContexts,
    CtfDecoder,
    _names,
    _lines,
    styles=(BABELTRACE,),
    prepare=_prepare,
    defects=CtfContexts.defects,
)
