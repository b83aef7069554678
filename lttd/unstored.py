"""Count the events and losses in a segment of a killed lttd; all others that it took are missing.

Rule: only sub-buffers from a given number on are decoded, because a segment can be of any size.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lttd.beneath import OpenDirectory
from lttd.errors import TraceDamagedError
from lttd.manifest import Manifest
from lttd.sources.base import Stored
from lttd.stored import StoredStream
from lttd.subbuffer import Gap, Reason, Unit
from lttd.tracedir import SegmentPaths, segments_below


def stored_from(
    trace: Path | OpenDirectory, segment: str, stream: str, first: int
) -> Stored | None:
    """Count the events of a stream, and those in its gaps, from sub-buffer number *first* on.

    Those of later segments of the same run count, too.  With *first* 0, also count the events in
    gaps for earlier kills.

    Return None if the events cannot be counted, or a sub-buffer before *first* is missing.
    """
    try:
        streams = list(_streams(trace, segment, stream))
        return _stored_from(streams, first) if streams else None
    except TraceDamagedError:
        return None


def _streams(
    trace: Path | OpenDirectory, segment: str, name: str
) -> Iterator[tuple[StoredStream, Manifest]]:
    """Yield a stream in *segment*, and in those into which the same run rolled on from there."""
    wanted: SegmentPaths | None = None
    for paths in segments_below(trace):
        if wanted is None and paths.directory.name != segment:
            continue
        if wanted is not None and paths.kind != wanted.kind:
            continue
        manifest = Manifest.read(paths.place(paths.manifest))
        if wanted is None or manifest.source.get("rolled_from") == wanted.directory.name:
            wanted = paths
            for record in manifest.streams:
                if record.info.id.name == name:
                    yield StoredStream(paths, manifest, record), manifest


def _stored_from(streams: Sequence[tuple[StoredStream, Manifest]], first: int) -> Stored | None:
    events, last = 0, 0
    behind = streams[0][0].record.subbuffers_before or 0
    is_complete = is_exact = streams[0][0].record.subbuffers_before == first
    lost: Counter[Reason] = Counter()
    for stream, manifest in streams:
        entries = stream.index.entries()
        sequences = entries["sequence"].astype(np.uint64)
        is_complete |= not first or bool((sequences >= np.uint64(first - 1)).any())
        is_exact |= not first or bool((sequences == np.uint64(first - 1)).any())
        if stream.abi is None:
            return None
        for block in stream.blocks(entries[sequences >= np.uint64(first)]):
            counted = stream.abi.decode(block.data, block.headers).events
            if counted is None:
                return None
            events += int(counted.sum())
        if not first:  # the losses of an earlier kill, for which this segment has gaps
            events += sum(gap.count or 0 for gap in stream.gaps if gap.reason is Reason.KILLED)
        behind = int(sequences[-1]) + 1 if len(sequences) else behind
        lost += _lost_from(stream.gaps, [*sequences.tolist(), behind], first)
        snapshots = manifest.clock_snapshots
        began = snapshots[0].trace if snapshots and not last else last
        last = int(entries["end"][-1]) if len(entries) else began
    return Stored(events, last, lost if is_exact else None) if is_complete else None


def _lost_from(gaps: Iterable[Gap], numbers: Sequence[int], first: int) -> Counter[Reason]:
    """Count the events in gaps before a sub-buffer with a number of at least *first*.

    *numbers* has that of each row, and that of the next one.
    """
    lost: Counter[Reason] = Counter()
    for gap in gaps:
        before = numbers[min(gap.row, len(numbers) - 1)]
        if gap.unit is Unit.EVENTS and gap.count and before >= first:
            lost[gap.reason] += gap.count
    return lost
