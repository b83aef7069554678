"""The family of relay channels; see ``lttd.view.family``."""

from collections.abc import Sequence
from typing import Final

from lttd.view.family import Family, Lines, Printing
from lttd.view.notes import TakesNotes
from lttd.view.relay.decode import RelayContexts, RelayDecoder
from lttd.view.trace import Segment


def _names(_segments: Sequence[Segment], _notes: TakesNotes) -> None:
    """Return nothing: nobody knows whose data it is."""


def _lines(printing: Printing, _notes: TakesNotes) -> Lines:
    from lttd.view.relay.lines import RelayTexter  # noqa: PLC0415  (not to count, nor to export)

    return RelayTexter(nanoseconds=printing.nanoseconds, fields=printing.fields)


FAMILY: Final = Family(RelayContexts, RelayDecoder, _names, _lines)
