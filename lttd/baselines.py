"""Find how many events each stream of a source lost before the new segment.

An index's ``events_discarded`` continues from segment to segment of a trace, for the same stream
of the same source: each of two sources of one kind has its own counts.

Rule: the manifests of a trace are read newest first, only until each stream is found, and only the
newest: a source that is new in a large trace must not read all of it.  A source that none of these
has counts from 0.
"""

from collections.abc import Iterable

from lttd.beneath import OpenDirectory
from lttd.manifest import StreamRecord, newest_manifests, recorded_source
from lttd.plausible import MOST_COUNT


class Baselines:
    """The counts of one source's streams, by the name of the stream's data file."""

    def __init__(self, trace: OpenDirectory, kind: str, source: str) -> None:
        """*source*: as recorded_source() returns it; *kind*: of that source."""
        self._source = source
        self._known: dict[str, int] = {}
        self._older = newest_manifests(trace, kind)

    def of(self, stream: str) -> int:
        """Return events_discarded at the end of the newest segment that has *stream*; else 0."""
        if stream not in self._known:
            for _, manifest in self._older:
                if recorded_source(manifest.source) == self._source:
                    for record in manifest.streams:
                        self._known.setdefault(record.name, total_of(record))
                if stream in self._known:
                    break
        return self._known.get(stream, 0)

    def closed(self, records: Iterable[StreamRecord]) -> None:
        """Continue the counts from *records*, those of a segment that was just closed."""
        self._known |= {record.name: total_of(record) for record in records}


def total_of(record: StreamRecord) -> int:
    """Return a stream's total of lost events, limited so that damage causes no overflow."""
    lost = record.summary.events_lost if record.summary else 0
    total = record.baseline_discarded + lost
    return total if total <= MOST_COUNT // 2 else 0
