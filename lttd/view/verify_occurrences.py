"""Compare a segment's occurrence table with its indexes and, event by event, with its data.

Rule: a table may say that an event can be where it is not.  One that misses an event is a finding,
because a question would not find that event.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

from lttd.errors import TraceDamagedError
from lttd.manifest import Manifest
from lttd.occurrence_maker import fitting_table
from lttd.occurrences import OccurrenceFile, Occurrences, row_bytes
from lttd.stored import StoredStream
from lttd.tracedir import SegmentPaths
from lttd.view.finding import MOST_FINDINGS, Finding

I64 = npt.NDArray[np.int64]


def wrong_occurrences(
    segment: SegmentPaths, manifest: Manifest, *, events: bool
) -> Iterator[Finding]:
    """Yield what is wrong with the table; with *events*, also what it misses."""
    try:
        file = OccurrenceFile(segment.place(segment.occurrences))
    except FileNotFoundError:
        return
    except TraceDamagedError as error:
        yield _finding(error)
        return
    for record in manifest.streams:
        stream = StoredStream(segment, manifest, record)
        try:
            table = fitting_table(file, stream)
            if events and table is not None:
                yield from islice(_missed(stream, table), MOST_FINDINGS)
        except TraceDamagedError as error:
            if error.path == segment.occurrences:  # others have been reported
                yield _finding(error)


def _finding(error: TraceDamagedError) -> Finding:
    return Finding(error.path, error.offset_bytes, f"{error.reason}; lttv index makes it again")


def _missed(stream: StoredStream, table: Occurrences) -> Iterator[Finding]:
    """Yield the events that a table misses, one of each id and block."""
    assert stream.abi is not None
    nothing = np.zeros(row_bytes(table.entries, table.group), np.uint8)
    rows = dict(zip(table.ids, table.bits, strict=True))
    for block in stream.blocks(stream.index):
        found = stream.abi.event_ids(block.data, block.headers)
        for one in np.flatnonzero(np.bincount(found.id)).tolist() if found else ():
            assert found is not None
            entries: I64 = np.unique(block.rows[found.row[found.id == one]])
            first, behind = int(entries[0]), int(entries[-1]) + 1
            noted = table.entries_of(rows.get(one, nothing), first, behind)
            missed = entries[~noted[entries - first]]
            if len(missed):
                reason = (
                    f"{stream.name}: event id {one} is in sub-buffer {int(missed[0]):,}, which the"
                    " table denies; remove it, and lttv index makes it again"
                )
                yield Finding(stream.segment.occurrences, 0, reason)
