"""The family of LTTng 0.x; see ``lttd.view.family``."""

from collections.abc import Sequence
from typing import Final

from lttd.view.family import Family, Lines, Printing
from lttd.view.ltt.decode import LttContexts, LttDecoder
from lttd.view.notes import TakesNotes
from lttd.view.trace import Segment


def _names(_segments: Sequence[Segment], _notes: TakesNotes) -> None:
    """Return nothing: events do not state who ran."""


def _lines(printing: Printing, _notes: TakesNotes) -> Lines:
    from lttd.view.ltt.lines import LttTexter  # noqa: PLC0415  (not to count, nor to export)

    return LttTexter(printing.sources, printing.fields)


FAMILY: Final = Family(LttContexts, LttDecoder, _names, _lines)
