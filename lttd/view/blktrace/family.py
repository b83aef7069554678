"""The family of block traces; see ``lttd.view.family``."""

from collections.abc import Sequence
from typing import Final

from lttd.abi.blktrace import NAME
from lttd.stored import StoredStream
from lttd.view.blktrace.decode import BlktraceContexts, BlktraceDecoder
from lttd.view.blktrace.process_names import BlktraceNames, first_time
from lttd.view.family import Family, Lines, Printing
from lttd.view.notes import TakesNotes
from lttd.view.task_names import Names
from lttd.view.trace import Segment


def _names(segments: Sequence[Segment], _notes: TakesNotes) -> Names:
    return BlktraceNames(segments)


def _lines(printing: Printing, _notes: TakesNotes) -> Lines:
    from lttd.view.blktrace.lines import BlkparseLines  # noqa: PLC0415  (not to count, nor export)
    from lttd.view.lines import FieldTexter  # noqa: PLC0415

    names, fields = printing.names, printing.fields
    assert names is not None
    if fields is not None:
        return FieldTexter(names, nanoseconds=printing.nanoseconds, fields=fields)
    return BlkparseLines(names, lambda: first_time(_streams(printing.segments)))


def _streams(segments: Sequence[Segment]) -> list[StoredStream]:
    """Return the block streams of all CPUs, also of those that are not printed."""
    streams = [stream for segment in segments for stream in segment.streams]
    return [stream for stream in streams if stream.info.abi == NAME]


FAMILY: Final = Family(BlktraceContexts, BlktraceDecoder, _names, _lines)
