"""Find how many events each stream of a source lost before the new segment.

An index's ``events_discarded`` continues from segment to segment of a trace, for the same stream
of the same source: each of two sources of one kind has its own counts.

Rule: the manifests of a trace are read newest first, only until each stream is found, and at most
MOST_MANIFESTS of them: a source that is new in a large trace must not read all of it.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from lttd.beneath import OpenDirectory
from lttd.errors import TraceDamagedError
from lttd.manifest import Manifest, StreamRecord, recorded_source
from lttd.plausible import MOST_COUNT
from lttd.tracedir import SegmentPaths, segments_below

# Reading a manifest takes 0.3 ms.  A source that has none in these segments counts from 0.
MOST_MANIFESTS: Final = 64


class Baselines:
    """The counts of one source's streams, by the name of the stream's data file."""

    def __init__(self, trace: OpenDirectory, kind: str, source: str) -> None:
        """*source*: as recorded_source() returns it; *kind*: of that source."""
        ours = [one for one in reversed(segments_below(trace)) if one.kind == kind]
        self._source = source
        self._known: dict[str, int] = {}
        self._older = _manifests(ours[:MOST_MANIFESTS])

    def of(self, stream: str) -> int:
        """Return events_discarded at the end of the newest segment that has *stream*; else 0."""
        if stream not in self._known:
            for manifest in self._older:
                if recorded_source(manifest.source) == self._source:
                    for record in manifest.streams:
                        self._known.setdefault(record.name, total_of(record))
                if stream in self._known:
                    break
        return self._known.get(stream, 0)

    def closed(self, records: Iterable[StreamRecord]) -> None:
        """Continue the counts from *records*, those of a segment that was just closed."""
        self._known |= {record.name: total_of(record) for record in records}


def _manifests(segments: Iterable[SegmentPaths]) -> Iterator[Manifest]:
    for paths in segments:
        with suppress(TraceDamagedError):
            yield Manifest.read(paths.place(paths.manifest))


def total_of(record: StreamRecord) -> int:
    """Return a stream's total of lost events, limited so that damage causes no overflow."""
    lost = record.summary.events_lost if record.summary else 0
    total = record.baseline_discarded + lost
    return total if total <= MOST_COUNT // 2 else 0
